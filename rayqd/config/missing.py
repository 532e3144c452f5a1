"""A file that is not there, and those that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

_MOST_ENTRIES = 2000  # of a folder that is looked through


def describe_missing(path: Path, suffix: str = "") -> str:
    """Say that `path` is not there, with what has a name like it here or near, else what ends in `suffix`."""
    if near := _near(path, suffix):
        return f"{path}: does not exist; did you mean {', '.join(map(str, near[:3]))}?"
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: does not exist, nor does the folder {folder}"
    others = [name for name in _names(folder) if suffix and name.endswith(suffix)][:5]
    if not others:
        return f"{path}: does not exist, and nothing in {folder} has a name like it"
    return f"{path}: does not exist; there are {', '.join(str(folder / name) for name in others)}"


def _near(path: Path, suffix: str) -> list[Path]:
    """Return paths that are there: a name like it in that folder or in one called nearly so, or one level deeper."""
    folders = [path.parent] if path.parent.is_dir() else _similar_folders(path.parent)
    similar = [folder / name for folder in folders for name in _similar(path.name, folder, suffix)]
    if similar or len(path.parts) > 1:
        return similar
    name = path.name if path.name.endswith(suffix) else path.name + suffix
    return [folder / name for folder in _subfolders(Path()) if (folder / name).exists()]


def _similar_folders(folder: Path) -> list[Path]:
    """Return folders that are there and whose every part is, or is nearly, that of `folder`."""
    if folder.is_dir():
        return [folder]
    if folder.parent == folder:
        return []
    parents = _similar_folders(folder.parent)
    found = [parent / name for parent in parents for name in _similar(folder.name, parent, "", cutoff=0.7)]
    return [path for path in found if path.is_dir()]


def _similar(name: str, folder: Path, suffix: str, cutoff: float = 0.5) -> list[str]:
    """Return the names in `folder` that are like `name`, with or without the `suffix`."""
    by_stem = {other.removesuffix(suffix): other for other in _names(folder)}
    stem = name.removesuffix(suffix)
    if stem in by_stem:
        return [by_stem[stem]]
    return [by_stem[near] for near in difflib.get_close_matches(stem, by_stem, n=3, cutoff=cutoff)]


def _subfolders(folder: Path) -> Iterator[Path]:
    return (entry for name in _names(folder) if (entry := folder / name).is_dir() and not name.startswith("."))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())[:_MOST_ENTRIES]
    except OSError:
        return []
