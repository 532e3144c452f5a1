"""A run's directory: its configuration, its metrics, its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.config.resolved import differences, to_toml
from rayqd.errors import RayqdError, RunError, StorageError
from rayqd.events import QuarantineEvent, RecordedEvent, to_json
from rayqd.files import write_text
from rayqd.runs.storage.stored_run import RUN_ID, StoredRun

STOPPED_EARLY = "stopped_early"  # in the result of a trial that its sweep ended before the last step

# Nothing is lost with these.
_BEFORE_A_RUN = {"config.toml", ".lock", RUN_ID, "logs", "ray_train", ".fetch.lock", "ended.json"}
_MADE_BY = "# rayqd "  # how config.toml begins; the command's name follows


class RunDirectory:
    """Written by the driver alone, checkpoints and export excepted. Opening it locks it."""

    def __init__(self, config: Config, command: str = "distill", *, patience_seconds: float = 0.2) -> None:
        """Raises RunError where another process, another configuration or another command has it.

        A process that is about to end is waited for, up to `patience_seconds`; by default only as long as somebody who
        lists the runs may be touching the lock.
        """
        self.path = config.run_dir
        self._command = command
        self._patience_seconds = patience_seconds
        self._stored: StoredRun | None = None
        self._lock = self._open(config)

    @property
    def result(self) -> dict[str, Any] | None:
        """What `result.json` says; None until the run has finished."""
        return self._read("result.json")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def append(self, event: RecordedEvent, time: float) -> None:
        """Add a line to the file that keeps such events; `time` in seconds since the epoch."""
        file = self.path / "quarantine.jsonl" if isinstance(event, QuarantineEvent) else self.metrics
        with file.open("a") as stream:
            stream.write(json.dumps(to_json(event, time)) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Rows of steps that will be done again."""
        if self.metrics.exists():
            rows = [line for line in self.metrics.read_text().split("\n") if line]
            kept = [row for row in rows if json.loads(row)["step"] <= step]
            write_text(self.metrics, "".join(row + "\n" for row in kept))

    def link_logs(self, logs: Path | None) -> None:
        """`logs` leads to what the processes of this run print."""
        link = self.path / "logs"
        link.unlink(missing_ok=True)
        if logs is not None:
            link.symlink_to(logs)

    def finish(self, result: dict[str, Any]) -> None:
        write_text(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    @property
    def export(self) -> str:
        """Where the finished run's export is: in the storage alone when the learner was on another machine."""
        own = self.path / "export"
        return str(own) if own.is_dir() or not self._stored else f"{self._stored.folder}/export"

    def upload(self, *, export: bool = False) -> None:
        """Bring the storage, if there is one, up to this directory; `export` when the run has finished.

        Raises StorageError.
        """
        if self._stored:
            self._stored.upload(self.path)
        if self._stored and export:
            self._stored.upload_export(self.path)

    def close(self) -> None:
        self._lock.release()

    def _open(self, config: Config) -> FileLock:
        saved = self.path / "config.toml"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            lock.acquire(timeout=self._patience_seconds, poll_interval=0.02)
        except Timeout:
            raise RunError(f"{self.path} is in use: this run is going on in another process") from None
        except OSError as error:
            raise StorageError(f"run directory {self.path} cannot be made: {error.strerror}") from error
        try:
            if saved.exists():
                begun = any(path.name not in _BEFORE_A_RUN for path in self.path.iterdir())
                self._refuse_other(str(self.path), saved, begun, config)
            elif any(path.name != ".lock" for path in self.path.iterdir()):
                raise RunError(f"{self.path} is not empty and not a run's directory; choose another name")
            self._stored = StoredRun.of(config)
            if self._stored:
                self._stored.join(self.path, lambda place, file, begun: self._refuse_other(place, file, begun, config))
            write_text(saved, f"{_MADE_BY}{self._command}\n\n{to_toml(config)}")
            if self._stored:
                self._stored.begin(self.path)
        except RayqdError:
            lock.release()
            raise
        return lock

    def _refuse_other(self, place: str, saved: Path, begun: bool, config: Config) -> None:
        """`saved` is the config.toml found at `place`; what has not `begun` may still change."""
        _refuse_other_command(place, saved, self._command)
        if begun:
            _refuse_other(place, load_config([f"@{saved}"]), config)

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else None


def _refuse_other_command(place: str, saved: Path, command: str) -> None:
    first = saved.read_text().partition("\n")[0]
    old = first.removeprefix(_MADE_BY) if first.startswith(_MADE_BY) else "distill"
    if old != command:
        raise RunError(
            f"{place} belongs to `rayqd {old}`, not `rayqd {command}`: "
            "give this run another name, or remove the directory"
        )


def _refuse_other(place: str, old: Config, new: Config) -> None:
    changed = differences(old, new)
    if changed:
        raise RunError(
            f"{place} belongs to another configuration ({'; '.join(changed)}): "
            "give this run another name, or remove the directory"
        )
