"""A directory that appears whole or not at all: written aside, then renamed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rayqd.errors import StorageError


@contextmanager
def written_aside(directory: Path, *, num_bytes: int, overwrite: bool = True) -> Iterator[Path]:
    """An empty directory that becomes `directory` when the block ends, or leaves no trace when it fails.

    Raises StorageError when the files, some `num_bytes` of them, cannot be written; and, unless `overwrite`, when
    `directory` is there already.
    """
    directory = directory.absolute()
    if not overwrite and directory.exists():
        raise StorageError(f"{directory} exists already; add --overwrite to replace it, or choose another --out")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
            scratch = Path(temporary, "checkpoint")
            scratch.mkdir()
            yield scratch
            _put_in_place(scratch, directory, retired=Path(temporary, "retired"))
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write the checkpoint {directory}, which needs {num_bytes} bytes: {error}; "
            "make room there or choose another runs_dir"
        ) from error


def directory_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _put_in_place(scratch: Path, directory: Path, *, retired: Path) -> None:
    """`scratch` becomes `directory`; what was there goes with the temporary directory, or comes back on failure."""
    if not directory.exists():
        scratch.rename(directory)
        return
    directory.rename(retired)
    try:
        scratch.rename(directory)
    except OSError:
        retired.rename(directory)
        raise
