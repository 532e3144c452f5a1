"""A sweep's directory: what it is, which trials it has begun, and its result. Each trial has its own inside."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired, TypedDict, cast

from pydantic import JsonValue

from rayqd.config import Config
from rayqd.config.sections.sweep import SweepConfig
from rayqd.config.sweep import load_sweep, sweep_differences, sweep_toml
from rayqd.errors import RunError
from rayqd.runs.directory import RunDirectory, describe_run_dir
from rayqd.runs.lines import LinesFile, read_lines
from rayqd.sweep.results import SweepResult
from rayqd.sweep.trials import Outcome, Trial, read_outcome


class _LedgerRow(TypedDict):
    """A line of `trials.jsonl`: a trial was begun, or it failed."""

    number: int
    settings: NotRequired[dict[str, JsonValue]]
    error: NotRequired[str]


class SweepDirectory:
    """`config.toml` and `sweep.toml` are together the sweep; `trials.jsonl` is its ledger."""

    def __init__(self, config: Config, sweep: SweepConfig) -> None:
        """Lock the directory; raises RunError where another process, another sweep, or something else has it."""
        self._run_dir = RunDirectory(config, "sweep")
        self.path = self._run_dir.path
        self._ledger = LinesFile(self.path / "trials.jsonl")
        try:
            _refuse_other(self.path, sweep)
            self._refuse_damaged_ledger()
            (self.path / "sweep.toml").write_text(sweep_toml(sweep))
        except RunError:
            self.close()
            raise

    def begin(self, trial: Trial) -> None:
        """Enter a trial, which is known from now on, whatever becomes of it."""
        self._append({"number": trial.number, "settings": dict(trial.settings)})

    def fail(self, number: int, error: str) -> None:
        """Enter why a trial failed."""
        self._append({"number": number, "error": error})

    def begun(self) -> list[Trial]:
        """Return every trial that was ever begun, in the order of their numbers."""
        settings = {row["number"]: row["settings"] for row in self._rows() if "settings" in row}
        return [Trial(number=number, settings=settings[number]) for number in sorted(settings)]

    def errors(self) -> dict[int, str]:
        """Return why trials failed, by number, unless they have been begun again."""
        errors: dict[int, str] = {}
        for row in self._rows():
            if "error" in row:
                errors[row["number"]] = row["error"]
            else:
                errors.pop(row["number"], None)
        return errors

    def outcomes(self) -> list[Outcome]:
        """Return what became of every trial that was begun."""
        errors = self.errors()
        return [read_outcome(trial, self.path, errors.get(trial.number)) for trial in self.begun()]

    def finish(self, result: SweepResult) -> None:
        """Write `result.json`."""
        self._run_dir.finish(result)

    def link_logs(self, logs: Path | None) -> None:
        """Link to Ray's logs, if they are on this machine."""
        self._run_dir.link_logs(logs)

    def close(self) -> None:
        """Unlock the directory."""
        self._run_dir.close()

    def _append(self, row: _LedgerRow) -> None:
        self._ledger.append(row)

    def _rows(self) -> list[_LedgerRow]:
        return cast("list[_LedgerRow]", read_lines(self._ledger.path)[0])

    def _refuse_damaged_ledger(self) -> None:
        """Raise RunError where a line is not what was written: nobody knows what its trial was to be."""
        if num_damaged := read_lines(self._ledger.path)[1]:
            raise RunError(
                f"{self._ledger.path} is damaged in {num_damaged} lines: bring back a copy of it, or remove these "
                "lines and the directories of the trials that are then in none"
            )


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
