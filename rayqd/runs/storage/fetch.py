"""A stored run as a directory, for commands that look at runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayqd.errors import StorageError
from rayqd.runs.storage.folder import Folder
from rayqd.runs.storage.stored_run import CONFIG, RESULT, StoredRun


def fetch_run(uri: str, cache: Path, parts: Sequence[str]) -> Path:
    """The run at `uri` (`<storage>/<name>`) under `cache`: its settings, its result, and those of `parts` that it has.

    `parts` are of start, checkpoints, which means the newest, and export. What was fetched before is not fetched again.
    Raises StorageError.
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
    whole = folder.directories()
    for name in {"start", "export"} & set(parts) & set(whole):
        if not (run_dir / name).is_dir():
            folder.get(name, run_dir / name)
    if "checkpoints" in parts and (steps := folder.inside("checkpoints").directories()):
        newest = max(steps, key=lambda name: (len(name), name))  # step-1000000 comes after step-999999
        if not (run_dir / "checkpoints" / newest).is_dir():
            folder.inside("checkpoints").get(newest, run_dir / "checkpoints" / newest)
    return run_dir
