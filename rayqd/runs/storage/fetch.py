"""A stored run as a directory, for commands that look at runs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from rayqd.errors import RunError, StorageError
from rayqd.extensions import is_import_path
from rayqd.files import join_read
from rayqd.runs.paths import CHECKPOINTS, CONFIG, EXPORT, RESULT, START
from rayqd.runs.storage.folder import MANIFEST, Folder
from rayqd.runs.storage.stored_run import StoredRun
from rayqd.runs.storage.watched import LOOK_SECONDS, Patience, WatchedFolder


def fetch_run(uri: str, cache: Path, parts: Sequence[str]) -> Path:
    """Fetch the run at `uri` (`<storage>/<name>`): its settings, its result, and those of `parts` that it has.

    Returns its directory, which is under `cache`. `parts` are of start, checkpoints, which means the newest, and
    export. What was fetched before and is stored as it was is not fetched again. Raises StorageError, and RunError
    where its settings name code: whoever wrote them would choose what runs here.
    """
    folder = WatchedFolder(uri, Patience(LOOK_SECONDS, "patience with a storage"))
    config, run_id = folder.read(CONFIG), StoredRun(folder).run_id
    if config is None or run_id is None:
        raise StorageError(f"{folder}: is no stored run: it has no {CONFIG}, or no run-id; name storage and run")
    _refuse_code(folder, config)
    run_dir = join_read(cache, f"{run_id}/{str(folder).rpartition('/')[2]}")
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
            if newest and not (own := join_read(run_dir / CHECKPOINTS, newest)).is_dir():
                folder.inside(CHECKPOINTS).get(newest, own)
    return run_dir


def _fetch_newest(folder: Folder, name: str, directory: Path) -> None:
    """Fetch a directory that is not here, or not as it is stored: a run that went on has exported once more."""
    stored, seen = folder.read(f"{name}/{MANIFEST}") or b"", directory.with_name(f".{name}-{MANIFEST}")
    if directory.is_dir() and seen.is_file() and seen.read_bytes() == stored:
        return
    folder.get(name, directory)
    seen.write_bytes(stored)


def _refuse_code(folder: Folder, config: bytes) -> None:
    try:
        settings = tomllib.loads(config.decode())
    except ValueError as error:
        raise StorageError(f"{folder}/{CONFIG}: cannot be read: {error}") from error
    for key, text in _texts(settings):
        if key != "name" and is_import_path(text):
            raise RunError(
                f"{folder}/{CONFIG} names code to run ({key}={text}): where you trust who wrote it, copy the run here "
                "and give its directory"
            )


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in parsed TOML, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield from _texts(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _texts(inner, key)
