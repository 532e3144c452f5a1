"""The directory of an export: whole or absent, and never in place of another one unasked."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rayqd.checksums import find_damage, seal
from rayqd.errors import ModelError, StorageError
from rayqd.files import replace_directory

EXPORT_CHECKSUMS = "rayqd-checksums.json"
_WEIGHTS = (".safetensors", ".gguf")  # the other files are texts, which a user may change


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


def seal_export(directory: Path) -> None:
    """Write the checksums of the export's weights beside them."""
    seal(directory, file_name=EXPORT_CHECKSUMS, suffixes=_WEIGHTS, durable=False)


def check_export(directory: Path) -> None:
    """Raise ModelError where an export's weights are not those that rayqd wrote; what others made has no checksums."""
    if not (directory / EXPORT_CHECKSUMS).exists():
        return
    if damage := find_damage(directory, file_name=EXPORT_CHECKSUMS, is_renamed=_is_renamed):
        raise ModelError(
            f"{directory} is damaged: {damage}; copy it again from where it is whole, or make it again (`rayqd export "
            f"RUN --overwrite`; `rayqd quantize` for a run of that). If you changed its weights yourself, remove "
            f"{EXPORT_CHECKSUMS}"
        )


def _is_renamed(name: str, files: Collection[str]) -> str | None:
    """Return what the one .gguf file of a directory is called now; such files get names of their own."""
    found = [file for file in files if file.endswith(".gguf")]
    return found[0] if name.endswith(".gguf") and len(found) == 1 else None
