"""The directory of an export: whole or absent, and never in place of another one unasked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rayqd.errors import StorageError
from rayqd.files import replace_directory


@contextmanager
def export_directory(directory: Path, *, num_bytes: int, overwrite: bool = True) -> Iterator[Path]:
    """Yield an empty directory that becomes `directory` when the block ends, or leaves no trace when it fails.

    Raises StorageError when the files, some `num_bytes` of them, cannot be written; and, unless `overwrite`, when
    `directory` is there already.
    """
    if not overwrite and directory.exists():
        raise StorageError(f"{directory} exists already; add --overwrite to replace it, or choose another --out")
    try:
        with replace_directory(directory) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write the checkpoint {directory}, which needs {num_bytes} bytes: {error}; "
            "make room there or choose another runs_dir"
        ) from error
