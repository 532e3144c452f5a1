"""What Ray Tune tells of the trials goes to the screen, the ledger and the page."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Protocol

from ray.tune import Callback

from rayqd.actors.failures import unwrap_error
from rayqd.console.progress import Progress
from rayqd.errors import ConfigError
from rayqd.sweep.directory import SweepDirectory
from rayqd.sweep.report import write_page
from rayqd.sweep.results import SweepResult
from rayqd.sweep.study import Study
from rayqd.sweep.trials import Trial, TrialConfig, TrialReport


class TuneTrial(Protocol):
    """What is read of Ray Tune's Trial."""

    config: TrialConfig
    last_result: TrialReport
    pickled_error_file: str | None
    error_file: str | None


class SweepCallback(Callback):
    """Prints a line for each of Ray Tune's events, and keeps ledger and page up to date."""

    def __init__(self, progress: Progress, directory: SweepDirectory, study: Study, num_ended: int) -> None:
        self._progress = progress
        self._directory = directory
        self._study = study
        self._num_ended = num_ended
        self._running: dict[int, str] = {}

    def begin(self, trial: Trial) -> TrialConfig | None:
        """Return the trial as Tune is to know it; None if the settings refuse it."""
        self._directory.begin(trial)
        try:
            run = self._study.trial_config(trial)
        except ConfigError as error:
            self._fail(trial.number, trial.name, str(error))
            return None
        self._running[trial.number] = f"{trial.name} starting"
        self._progress.say(f"{trial.name} begins")
        self._status()
        steps = run.learner.steps
        return {"number": trial.number, "name": trial.name, "num_steps": steps, "run": run.model_dump(mode="json")}

    def on_trial_result(self, *, trial: TuneTrial, result: TrialReport, **info: object) -> None:
        """Print an evaluation, unless it is the last, which `on_trial_complete` prints."""
        line = f"{trial.config['name']}  step {result['step']}/{trial.config['num_steps']}  {format_report(result)}"
        self._running[trial.config["number"]] = line
        if not result["done"]:
            self._progress.say(line)
        self._status()

    def on_trial_complete(self, *, trial: TuneTrial, **info: object) -> None:
        """Print how a trial ended."""
        name, steps, last = trial.config["name"], trial.config["num_steps"], trial.last_result
        state = "finished" if last["step"] >= steps else f"stopped early at step {last['step']} of {steps}"
        self._end(trial.config["number"], f"{name} {state}: {format_report(last)}")

    def on_trial_error(self, *, trial: TuneTrial, **info: object) -> None:
        """Print and keep why a trial failed."""
        self._fail(trial.config["number"], trial.config["name"], read_error(trial))

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune writes a copy of everything it is given, for a restore of its own

    def _fail(self, number: int, name: str, why: str) -> None:
        self._directory.fail(number, why)
        self._end(number, f"{name} failed: {why}")

    def _end(self, number: int, line: str) -> None:
        self._running.pop(number, None)
        self._num_ended += 1
        self._progress.say(f"{line}  ({self._num_ended} of {self._study.num_trials} done)")
        write_page(SweepResult.of(self._study, self._directory.outcomes()), self._directory.path)
        self._status()

    def _status(self) -> None:
        self._progress.status(f"{self._num_ended}/{self._study.num_trials} done; {'; '.join(self._running.values())}")


def read_error(trial: TuneTrial) -> str:
    """Return in one line why a trial failed."""
    if trial.pickled_error_file:  # on this machine; Tune's own getter looks where it copies it to later
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
        text = str(unwrap_error(error, "trial"))
    else:
        assert trial.error_file
        text = Path(trial.error_file).read_text().strip().splitlines()[-1]
    return " ".join(text.split())


def format_report(result: TrialReport) -> str:
    """Return `KL to teacher 0.1033, perplexity 21.310`."""
    return f"KL to teacher {result['kl_to_teacher']:.4f}, perplexity {result['perplexity']:.3f}"
