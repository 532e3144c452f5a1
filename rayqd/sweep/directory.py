"""A sweep's directory: what it is, which trials it has begun, and its result. Each trial has its own inside."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rayqd.config import Config
from rayqd.config.sections.sweep import SweepConfig
from rayqd.config.sweep import load_sweep, sweep_differences, sweep_toml
from rayqd.errors import RunError
from rayqd.runs.directory import describe_run_dir
from rayqd.runs.directory_of_runs import DirectoryOfRuns
from rayqd.sweep.trials import Outcome, Settings, Trial, read_outcome


class SweepDirectory(DirectoryOfRuns):
    """`config.toml` and `sweep.toml` are together the sweep; `trials.jsonl` is its ledger."""

    def __init__(self, config: Config, sweep: SweepConfig) -> None:
        """Lock the directory; raises RunError where another process, another sweep, or something else has it."""
        super().__init__(config, "sweep", ledger="trials.jsonl", key="number")
        try:
            _refuse_other(self.path, sweep)
            self._ledger.refuse_damaged()
            (self.path / "sweep.toml").write_text(sweep_toml(sweep))
        except RunError:
            self.close()
            raise

    def begin(self, trial: Trial) -> None:
        """Enter a trial, which is known from now on, whatever becomes of it."""
        self._ledger.begin(trial.number, settings=dict(trial.settings))

    def fail(self, number: int, error: str) -> None:
        """Enter why a trial failed."""
        self._ledger.fail(number, error)

    def begun(self) -> list[Trial]:
        """Return every trial that was ever begun, in the order of their numbers."""
        settings = {int(number): row["settings"] for number, row in self._ledger.begun().items()}
        return [Trial(number=number, settings=cast("Settings", settings[number])) for number in sorted(settings)]

    def errors(self) -> dict[int, str]:
        """Return why trials failed, by number, unless they have been begun again."""
        return {int(number): error for number, error in self._ledger.errors().items()}

    def outcomes(self) -> list[Outcome]:
        """Return what became of every trial that was begun."""
        errors = self.errors()
        return [read_outcome(trial, self.path, errors.get(trial.number)) for trial in self.begun()]


def describe_sweep_dir(config: Config, sweep: SweepConfig) -> str:
    """Say what `SweepDirectory` would find, writing nothing; raises what it would, but for the lock."""
    state = describe_run_dir(config, "sweep")
    _refuse_other(config.run_dir, sweep)
    return state.replace("a run", "a sweep").replace("new run", "new sweep")


def _refuse_other(path: Path, sweep: SweepConfig) -> None:
    saved = path / "sweep.toml"
    if not saved.exists():
        return
    changed = sweep_differences(load_sweep([f"@{path / 'config.toml'}", f"@{saved}"]).sweep, sweep)
    if changed:
        raise RunError(
            f"{path} belongs to another sweep ({'; '.join(changed)}): "
            "give this sweep another name, or remove the directory"
        )
