"""What the user watches of a sweep, and what its ledger hears."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from rayqd.actors.failures import unwrap_error
from rayqd.console.progress import Progress
from rayqd.errors import ConfigError
from rayqd.sweep.directory import SweepDirectory
from rayqd.sweep.report import write_page
from rayqd.sweep.study import Study
from rayqd.sweep.trials import Trial


class Telling(Callback):
    """Ray Tune's events, a line each."""

    def __init__(self, progress: Progress, directory: SweepDirectory, study: Study, num_ended: int) -> None:
        self._progress = progress
        self._directory = directory
        self._study = study
        self._num_ended = num_ended
        self._running: dict[int, str] = {}

    def begin(self, trial: Trial) -> dict[str, Any] | None:
        """The trial as Tune is to know it; None if the settings refuse it."""
        self._directory.begin(trial)
        try:
            run = self._study.run(trial)
        except ConfigError as error:
            self._fail(trial.number, trial.name, str(error))
            return None
        self._running[trial.number] = f"{trial.name} starting"
        self._progress.say(f"{trial.name} begins")
        self._status()
        return {"number": trial.number, "name": trial.name, "run": run.model_dump(mode="json")}

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **info: Any) -> None:
        name, steps = trial.config["name"], trial.config["run"]["learner"]["steps"]
        line = f"{name}  step {result['step']}/{steps}  {_found(result)}"
        self._running[trial.config["number"]] = line
        if not result["done"]:
            self._progress.say(line)
        self._status()

    def on_trial_complete(self, *, trial: Any, **info: Any) -> None:
        name, steps, last = trial.config["name"], trial.config["run"]["learner"]["steps"], trial.last_result
        fate = "finished" if last["step"] >= steps else f"stopped early at step {last['step']} of {steps}"
        self._end(trial.config["number"], f"{name} {fate}: {_found(last)}")

    def on_trial_error(self, *, trial: Any, **info: Any) -> None:
        if trial.pickled_error_file:  # on this machine; Tune's own getter looks where it copies it to later
            error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
            text = str(unwrap_error(error, "trial"))
        else:
            text = Path(trial.error_file).read_text().strip().splitlines()[-1]
        self._fail(trial.config["number"], trial.config["name"], " ".join(text.split()))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of everything it is given, for a restore of its own

    def _fail(self, number: int, name: str, why: str) -> None:
        self._directory.fail(number, why)
        self._end(number, f"{name} failed: {why}")

    def _end(self, number: int, line: str) -> None:
        self._running.pop(number, None)
        self._num_ended += 1
        self._progress.say(f"{line}  ({self._num_ended} of {self._study.num_trials} done)")
        write_page(self._study, self._directory.outcomes(), self._directory.path)
        self._status()

    def _status(self) -> None:
        self._progress.status(f"{self._num_ended}/{self._study.num_trials} done; {'; '.join(self._running.values())}")


def _found(result: Mapping[str, Any]) -> str:
    return f"KL to teacher {result['kl_to_teacher']:.4f}, perplexity {result['perplexity']:.3f}"
