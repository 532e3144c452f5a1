"""What Ray Tune tells of the trials goes to the screen, the ledger and the page."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Protocol

from ray.tune import Callback

from rayqd.actors.failures import unwrap_error
from rayqd.config import Config
from rayqd.console.progress import Progress
from rayqd.errors import ConfigError
from rayqd.runs.paths import RESULT
from rayqd.runs.result_file import DistillResult, read_result
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


class TrialCallback(Callback):
    """Prints a line for each of Ray Tune's events, and counts the runs that have ended."""

    def __init__(self, progress: Progress, num_ended: int, num_all: int) -> None:
        """Take how many of how many runs have ended already."""
        self._progress = progress
        self._num_ended = num_ended
        self._num_all = num_all
        self._running: dict[int, str] = {}

    def keep_failure(self, number: int, why: str) -> None:
        """Keep why run `number` failed."""
        raise NotImplementedError

    def on_end(self) -> None:
        """Do what is to be done whenever a run has ended, in whatever way."""

    def start(self, number: int, name: str, run: Config) -> TrialConfig:
        """Print that a run begins; return it as Tune is to know it."""
        self._running[number] = f"{name} starting"
        self._progress.say(f"{name} begins")
        self._status()
        return {"number": number, "name": name, "num_steps": run.learner.steps, "run": run.model_dump(mode="json")}

    def fail(self, number: int, name: str, why: str) -> None:
        """Print and keep why a run failed; the others go on."""
        self.keep_failure(number, why)
        self._end(number, f"{name} failed: {why}")

    def on_trial_result(self, *, trial: TuneTrial, result: TrialReport, **info: object) -> None:
        """Print an evaluation, unless it is the last, which `on_trial_complete` prints."""
        line = f"{trial.config['name']}  step {result['step']}/{trial.config['num_steps']}  {format_report(result)}"
        self._running[trial.config["number"]] = line
        if not result["done"]:
            self._progress.say(line)
        self._status()

    def on_trial_complete(self, *, trial: TuneTrial, **info: object) -> None:
        """Print how a run ended."""
        name, steps, last = trial.config["name"], trial.config["num_steps"], trial.last_result
        how = "finished" if last["step"] >= steps else f"{_why_ended(trial.config)} at step {last['step']} of {steps}"
        self._end(trial.config["number"], f"{name} {how}: {format_report(last)}")

    def on_trial_error(self, *, trial: TuneTrial, **info: object) -> None:
        """Print and keep why a run failed."""
        self.fail(trial.config["number"], trial.config["name"], read_error(trial))

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune writes a copy of everything it is given, for a restore of its own

    def _end(self, number: int, line: str) -> None:
        self._running.pop(number, None)
        self._num_ended += 1
        self._progress.say(f"{line}  ({self._num_ended} of {self._num_all} done)")
        self.on_end()
        self._status()

    def _status(self) -> None:
        self._progress.status(f"{self._num_ended}/{self._num_all} done; {'; '.join(self._running.values())}")


class SweepCallback(TrialCallback):
    """Keeps ledger and page of a sweep up to date."""

    def __init__(self, progress: Progress, directory: SweepDirectory, study: Study, num_ended: int) -> None:
        """Take how many trials have ended already."""
        super().__init__(progress, num_ended, study.num_trials)
        self._directory = directory
        self._study = study

    def begin(self, trial: Trial) -> TrialConfig | None:
        """Return the trial as Tune is to know it; None if the settings refuse it."""
        self._directory.begin(trial)
        try:
            run = self._study.trial_config(trial)
        except ConfigError as error:
            self.fail(trial.number, trial.name, str(error))
            return None
        return self.start(trial.number, trial.name, run)

    def keep_failure(self, number: int, why: str) -> None:
        """Enter it in the ledger."""
        self._directory.fail(number, why)

    def on_end(self) -> None:
        """Write the page anew."""
        write_page(SweepResult.of(self._study, self._directory.outcomes()), self._directory.path)


def _why_ended(trial: TrialConfig) -> str:
    """Say who ended a run before its last step: the scheduler, or its own evaluations (eval.patience)."""
    result = read_result(Config.model_validate(trial["run"]).run_dir / RESULT)
    reason = result.reason if isinstance(result, DistillResult) else None
    return f"finished ({reason})" if reason else "stopped early"


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
