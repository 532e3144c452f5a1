"""A run's directory: its configuration, its metrics, its result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from pydantic import JsonValue

from rayqd.checksums import to_checked_json
from rayqd.config import Config
from rayqd.config.resolved import differences
from rayqd.errors import RayqdError, RunError, StorageError
from rayqd.events import EvalEvent, QuarantineEvent, RecordedEvent, to_json
from rayqd.files import set_aside, write_text
from rayqd.runs.audit_file import AuditFile
from rayqd.runs.benchmarks import training_name, write_items
from rayqd.runs.config_file import check_config, command_of, load_run_config, write_config
from rayqd.runs.extension import check_checkpoints, is_extension
from rayqd.runs.lease import LEASE, Disk, Lease, Place
from rayqd.runs.lines import LinesFile, keep_lines
from rayqd.runs.paths import (
    AUDIT,
    CONFIG,
    DATA,
    ENDED,
    EVALS,
    EXPORT,
    FETCH_LOCK,
    LOCK,
    LOGS,
    METRICS,
    QUARANTINE,
    RAY_TRAIN,
    RESULT,
    RUN_ID,
)
from rayqd.runs.result_file import DistillResult, RunResult, find_damaged_result, read_result
from rayqd.runs.storage.mirror import Mirror
from rayqd.runs.storage.stored_run import StoredRun

# A run that left no more has not begun.
_NO_PROGRESS = {CONFIG, LOCK, RUN_ID, LOGS, RAY_TRAIN, FETCH_LOCK, ENDED, DATA, LEASE}


def _ignore(text: str) -> None:
    pass


class Result(Protocol):
    """What a command came to."""

    def to_json(self) -> Mapping[str, object]:
        """Return the object that result.json is to hold."""
        ...


class RunDirectory:
    """The driver's view of a run's directory, where it alone writes, checkpoints and export excepted."""

    def __init__(
        self,
        config: Config,
        command: str = "distill",
        *,
        patience_seconds: float = 0.2,
        on_wait: Callable[[str], None] = _ignore,
    ) -> None:
        """Lock the directory; raises RunError where another process, configuration or command has it.

        A process that is about to end is waited for, up to `patience_seconds`; by default only as long as somebody who
        lists the runs may be touching the lock. Where another machine may have the run, `on_wait` is told so, and its
        lease is waited for.
        """
        self.path = config.run_dir
        self._command = command
        self._patience_seconds = patience_seconds
        self._on_wait = on_wait
        self._stored: StoredRun | None = None
        self.mirror = Mirror(self.path)
        self._leases: list[Lease] = []
        self._leased: StoredRun | None = None  # the storage once more: a stop has no less patience with a renewal
        self.audit = AuditFile(self.path / AUDIT)
        self._lines = {name: LinesFile(self.path / name) for name in (METRICS, QUARANTINE)}
        self.extends: Config | None = None  # the settings of a finished run that is to do more steps
        self._lock = self._open(config)

    @property
    def result(self) -> RunResult | None:
        """Return what `result.json` says; None until the run has finished."""
        return read_result(self.path / RESULT)

    @property
    def metrics(self) -> Path:
        """Return the path of `metrics.jsonl`, which may not be there yet."""
        return self.path / METRICS

    def append(self, event: RecordedEvent, time: float) -> str | None:
        """Add a line to the file that keeps such events; `time` in seconds since the epoch.

        Returns a line for the user where the file cannot be written, or can again.
        """
        self.check_lease()
        file = QUARANTINE if isinstance(event, QuarantineEvent) else METRICS
        line = self._lines[file].append(to_json(event, time))
        if isinstance(event, EvalEvent) and event.items:
            return line or write_items(self.path, training_name(event.step), event.items)
        return line

    def forget_metrics_after(self, step: int, *, and_evaluation: bool = False) -> str | None:
        """Drop the rows of steps that will be done again; return a line for the user where others were damaged.

        `and_evaluation`: that of `step` itself comes again.
        """

        def is_done(row: Mapping[str, JsonValue]) -> bool:
            number = row.get("step")
            again = and_evaluation and number == step and row.get("event") == "eval"
            return isinstance(number, int) and number <= step and not again

        return keep_lines(self.metrics, is_done)

    def set_damaged_result_aside(self) -> str | None:
        """Put `result.json` aside where it is not what was written; return the line that says so."""
        if (fault := find_damaged_result(self.path / RESULT)) is None:
            return None
        aside = set_aside(self.path / RESULT, "damaged")
        return f"{self.path / RESULT} {fault}; it is now {aside.name}, and the run goes on from its last checkpoint"

    def link_logs(self, logs: Path | None) -> None:
        """Link to `logs`, where the processes of this run print; None removes the link."""
        link = self.path / LOGS
        link.unlink(missing_ok=True)
        if logs is not None:
            link.symlink_to(logs)

    def finish(self, result: Result) -> None:
        """Write `result.json`, by which a run has finished. Raises StorageError."""
        for lines in (*self._lines.values(), self.audit):
            lines.finish()
        write_text(self.path / RESULT, to_checked_json(result.to_json()))

    @property
    def export(self) -> str:
        """Return where the finished run's export is: in the storage alone when the learner was on another machine."""
        own = self.path / EXPORT
        return str(own) if own.is_dir() or not self._stored else f"{self._stored.folder}/{EXPORT}"

    def upload(self, *, export: bool = False) -> None:
        """Bring the storage, if there is one, up to this directory; `export` when the run has finished.

        Raises StorageError.
        """
        self.mirror.upload(export=export)

    def close(self) -> None:
        """Unlock the directory."""
        self.mirror.hurry()
        if self._leased:
            self._leased.patience.end()
        if self.path.is_dir() and all(path.name in _NO_PROGRESS for path in self.path.iterdir()):
            shutil.rmtree(self.path / RAY_TRAIN, ignore_errors=True)
        self._release(self._lock)

    def check_lease(self) -> None:
        """Raise RunError where another machine has taken the run over, because this one stood still."""
        for lease in self._leases:
            lease.check()

    def _release(self, lock: FileLock) -> None:
        for lease in self._leases:
            lease.release()
        self._leases.clear()
        lock.release()

    def _take_lease(self, place: Place) -> None:
        lease = Lease(place)
        lease.take(self._on_wait)
        self._leases.append(lease)

    def _open(self, config: Config) -> FileLock:
        saved = self.path / CONFIG
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            lock.acquire(timeout=self._patience_seconds, poll_interval=0.02)
        except Timeout:
            raise RunError(f"{self.path} is in use: this run is going on in another process") from None
        except OSError as error:
            raise StorageError(f"run directory {self.path} cannot be made: {error.strerror}") from error
        try:
            if saved.exists():
                begun = any(path.name not in _NO_PROGRESS for path in self.path.iterdir())
                self._refuse_other(str(self.path), saved, begun, config)
            elif any(path.name not in (LOCK, LEASE) for path in self.path.iterdir()):
                raise RunError(f"{self.path} is not empty and not a run's directory; choose another name")
            self._take_lease(Disk(self.path))
            self._stored, self._leased = StoredRun.of(config), StoredRun.of(config)
            self.mirror = Mirror(self.path, self._stored)
            if self._stored and self._leased:
                self._stored.folder.check_rights()
                self._take_lease(self._leased.folder)
                self._stored.join(self.path, lambda uri, file, begun: self._refuse_other(uri, file, begun, config))
            write_config(saved, self._command, self.extends or config)
            if self._stored:
                self._stored.begin(self.path)
        except RayqdError:
            self._release(lock)
            raise
        return lock

    def _refuse_other(self, location: str, saved: Path, begun: bool, config: Config) -> None:
        """Compare with `saved`, the config.toml at `location`; the settings of what has not `begun` may change."""
        _refuse_other_command(location, saved, self._command)
        if not begun:
            return
        old = load_run_config(saved)
        if is_extension(location, old, config, self._find_result()):
            self.extends = old
        else:
            _refuse_other_settings(location, old, config)

    def _find_result(self) -> RunResult | None:
        """Return the result that lies here, or else in the storage."""
        return self.result or (self._stored.result if self._stored else None)

    def extend(self, config: Config) -> list[str]:
        """Take the settings of a finished run's extension, and set aside what tells of its earlier end.

        Returns lines for the user. Raises RunError where there is no checkpoint to go on from.
        """
        result = self.result
        if not isinstance(result, DistillResult):
            return []
        check_checkpoints(self.path, self._stored, config)
        write_config(self.path / CONFIG, self._command, config)
        if self._stored:
            self._stored.begin(self.path)
        earlier = f"step-{result.num_steps:06d}"
        names = sorted(path.name for path in self.path.glob(f"{EXPORT}-*"))
        others = [name for name in names if not name.startswith(f"{EXPORT}-step-")]
        for name in (EXPORT, EVALS):  # before the result, so that whoever is killed in between does it again
            if (self.path / name).is_dir():
                set_aside(self.path / name, earlier)
        (self.path / RESULT).replace(self.path / f"{Path(RESULT).stem}-{earlier}.json")
        stay = [f"{', '.join(others)} in {self.path} stay as they are, of step {result.num_steps}"] if others else []
        return [
            f"{self.path} goes on to step {config.learner.steps}; what it came to is in result-{earlier}.json",
            *stay,
        ]


def describe_run_dir(config: Config, command: str = "distill") -> str:
    """Say what `RunDirectory` would find, writing nothing; raises what it would, but for the lock."""
    path = config.run_dir
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(f"run directory {path} cannot be made: {parent} is not a directory that may be written")
    saved = path / CONFIG
    if not saved.exists():
        if path.exists() and any(file.name not in (LOCK, LEASE) for file in path.iterdir()):
            raise RunError(f"{path} is not empty and not a run's directory; choose another name")
        return "a new run"
    _refuse_other_command(str(path), saved, command)
    if all(file.name in _NO_PROGRESS for file in path.iterdir()):
        return "a run that has not begun"
    old = load_run_config(saved)
    if is_extension(str(path), old, config, read_result(path / RESULT)):
        return f"a run of {old.learner.steps} steps that has finished, and would go on to {config.learner.steps}"
    _refuse_other_settings(str(path), old, config)
    return "a run that has finished" if (path / RESULT).exists() else "a run that would go on where it ended"


def _refuse_other_command(location: str, saved: Path, command: str) -> None:
    check_config(saved)
    old = command_of(saved)
    if old != command:
        raise RunError(
            f"{location} belongs to `rayqd {old}`, not `rayqd {command}`: "
            "give this run another name, or remove the directory"
        )


def _refuse_other_settings(location: str, old: Config, new: Config) -> None:
    changed = differences(old, new)
    if changed:
        raise RunError(
            f"{location} belongs to another configuration ({'; '.join(changed)}): "
            "give this run another name, or remove the directory"
        )
