"""A run as its storage has it, and how it becomes one with a run's directory."""

from __future__ import annotations

import math
import re
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from rayqd.checksums import from_checked_json
from rayqd.config import Config
from rayqd.errors import RunError, StorageError
from rayqd.runs.paths import (
    AUDIT,
    COMPLETIONS,
    CONFIG,
    DATA,
    EXPORT,
    FIGURES,
    METRICS,
    QUARANTINE,
    REPORT,
    RESULT,
    RESULT_TABLE,
    RUN_ID,
)
from rayqd.runs.result_file import RunResult, parse_result
from rayqd.runs.storage.folder import Folder
from rayqd.runs.storage.watched import Patience, WatchedFolder

_LINES = (METRICS, AUDIT, COMPLETIONS, QUARANTINE)  # files that only grow
_FILES = (CONFIG, DATA, *_LINES, RESULT, RESULT_TABLE, REPORT)  # of the driver
_A_RUN_ID = re.compile(rb"[0-9a-f]{12}\s*")


class StoredRun:
    """`<storage>/<name>/`. Methods raise StorageError where the storage fails."""

    def __init__(self, folder: Folder, patience: Patience | None = None) -> None:
        self.folder = folder
        self.patience = patience or Patience(math.inf)
        self._uploaded: dict[str, tuple[int, int]] = {}  # bytes and time of change of each file

    @classmethod
    def of(cls, config: Config) -> StoredRun | None:
        """Open the run's folder; None without `storage`."""
        if not config.storage:
            return None
        patience = Patience(config.ray.stall_seconds)
        return cls(WatchedFolder(config.storage, patience).inside(config.name), patience)

    @property
    def run_id(self) -> str | None:
        """Return what tells a run from a later one of the same name; None where there is none.

        It becomes a directory's name here. So StorageError is raised for what `begin` could not have written.
        """
        stored = self.folder.read(RUN_ID)
        if stored is not None and not _A_RUN_ID.fullmatch(stored):
            raise StorageError(f"{self.folder}/{RUN_ID}: is no run's id (12 hexadecimal digits), but {stored[:40]!r}")
        return stored.decode().strip() if stored is not None else None

    @property
    def result(self) -> RunResult | None:
        """Return what the run came to; None where it has not finished."""
        content = self.folder.read(RESULT)
        if content is None:
            return None
        try:
            return parse_result(from_checked_json(content))
        except ValueError:
            return None

    def join(self, run_dir: Path, refuse: Callable[[str, Path, bool], None]) -> None:
        """Bring `run_dir` up to what the storage has, before anything is started.

        `refuse(location, file, begun)` raises where the config.toml found there is not this run's; `begun` if that is
        not all there is. Raises RunError when `run_dir` and the storage are different runs.
        """
        stored = self.run_id
        if stored is None:
            return
        own = _text(run_dir / RUN_ID)
        if own != stored and (run_dir / CONFIG).exists():
            raise RunError(
                f"{run_dir} and {self.folder} hold different runs of the same name: "
                "give this run another name, or remove the one that is not wanted"
            )
        grown = {name: content for name in _LINES if (content := self.folder.read(name)) is not None}
        if (config := self.folder.read(CONFIG)) is not None:
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch, CONFIG)
                file.write_bytes(config)
                refuse(str(self.folder), file, bool(grown or self.folder.directories()))
        (run_dir / RUN_ID).write_text(stored)
        for name, content in grown.items():
            if content.count(b"\n") > (_text(run_dir / name) or "").count("\n"):
                (run_dir / name).write_bytes(content)
        for name in set(_FILES) - {CONFIG, *_LINES}:
            if not (run_dir / name).exists() and (content := self.folder.read(name)) is not None:
                (run_dir / name).write_bytes(content)

    def begin(self, run_dir: Path) -> None:
        """Give the run an id where it has none, and put it there with the configuration."""
        if not (run_dir / RUN_ID).exists():
            (run_dir / RUN_ID).write_text(uuid.uuid4().hex[:12])
        if self.run_id is None:
            self.folder.write(RUN_ID, (run_dir / RUN_ID).read_bytes())
        self.folder.write(CONFIG, (run_dir / CONFIG).read_bytes())

    def upload(self, run_dir: Path) -> None:
        """Upload the driver's files, as they are now; those that have changed since the last time."""
        for file in (run_dir / name for name in _FILES if (run_dir / name).is_file()):
            state = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._uploaded.get(file.name) != state:
                self.folder.write_file(file.name, file)
                self._uploaded[file.name] = state

    def upload_figures(self, run_dir: Path) -> None:
        """Upload the page's drawings, as they are now."""
        for file in sorted((run_dir / FIGURES).glob("*.svg")):
            self.folder.inside(FIGURES).write_file(file.name, file)

    def upload_export(self, run_dir: Path) -> None:
        """Upload the export, unless one is there."""
        if (run_dir / EXPORT).is_dir() and EXPORT not in self.folder.directories():
            self.folder.put(run_dir / EXPORT, EXPORT)


def _text(file: Path) -> str | None:
    return file.read_text() if file.is_file() else None
