"""A stored run as a directory, for commands that look at runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayqd.errors import StorageError
from rayqd.runs.paths import CHECKPOINTS, CONFIG, EXPORT, RESULT, START
from rayqd.runs.storage.folder import MANIFEST, Folder
from rayqd.runs.storage.stored_run import StoredRun


def fetch_run(uri: str, cache: Path, parts: Sequence[str]) -> Path:
    """Fetch the run at `uri` (`<storage>/<name>`): its settings, its result, and those of `parts` that it has.

    Returns its directory, which is under `cache`. `parts` are of start, checkpoints, which means the newest, and
    export. What was fetched before and is stored as it was is not fetched again. Raises StorageError.
    """
    folder = Folder.open(uri)
    config, run_id = folder.read(CONFIG), StoredRun(folder).run_id
    if config is None or run_id is None:
        raise StorageError(f"{folder}: is no stored run: it has no {CONFIG}, or no run-id; name storage and run")
    run_dir = cache / run_id / str(folder).rpartition("/")[2]
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG).write_bytes(config)
    if (result := folder.read(RESULT)) is not None:
        (run_dir / RESULT).write_bytes(result)
    for name in {START, EXPORT} & set(parts) & set(folder.directories()):
        _fetch_newest(folder, name, run_dir / name)
    if CHECKPOINTS in parts:
        stored = folder.inside(CHECKPOINTS).directories()
        for kind in ("step-", "best-"):
            names = [name for name in stored if name.startswith(kind)]
            newest = max(names, key=lambda name: (len(name), name), default=None)  # 1000000 comes after 999999
            if newest and not (run_dir / CHECKPOINTS / newest).is_dir():
                folder.inside(CHECKPOINTS).get(newest, run_dir / CHECKPOINTS / newest)
    return run_dir


def _fetch_newest(folder: Folder, name: str, directory: Path) -> None:
    """Fetch a directory that is not here, or not as it is stored: a run that went on has exported once more."""
    stored, seen = folder.read(f"{name}/{MANIFEST}") or b"", directory.with_name(f".{name}-{MANIFEST}")
    if directory.is_dir() and seen.is_file() and seen.read_bytes() == stored:
        return
    folder.get(name, directory)
    seen.write_bytes(stored)
