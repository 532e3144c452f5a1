"""What a checkpoint holds: safetensors files of what is trained, the optimizer's state, and digests of the weights.

A checkpoint is whole or absent. One whose bytes have changed since, or of which a file is gone, is put aside before a
run goes on, and the next older one takes its place.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from rayqd.checksums import find_damage, seal
from rayqd.errors import RunError, StorageError
from rayqd.files import free_bytes, replace_directory, set_aside
from rayqd.runs.paths import AUDIT

DIGESTS = "digests"  # the set of tensors that says what the weights came to, see `rayqd.export.digest`

_NAME = re.compile(r"step-(\d{6,})$")


def step_of(name: str) -> int | None:
    """Return the number in a checkpoint's name, `step-000100`; None for any other name."""
    match = _NAME.match(name)
    return int(match[1]) if match else None


class Checkpoints:
    """The directories `step-000100` of a run; each holds one safetensors file for each set of tensors."""

    on_saved: Callable[[], None] | None = None  # called after a checkpoint was written and older ones removed

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(step for path in self.directory.iterdir() if (step := step_of(path.name)) is not None)

    def path(self, step: int) -> Path:
        """Return the directory of the checkpoint after `step` steps, whether it is there or not."""
        return self.directory / f"step-{step:06d}"

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], audit: str = "") -> Path:
        """Write a checkpoint and forget all but the newest `keep`; StorageError leaves the older ones as they were.

        `audit`: see `AuditTrail`.
        """
        needed = sum(t.nbytes for group in tensors.values() for t in group.values())
        try:
            with replace_directory(self.path(step)) as partial:
                for name, group in tensors.items():
                    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
                    save_file(contiguous, partial / f"{name}.safetensors")
                if audit:
                    (partial / AUDIT).write_text(audit, encoding="utf-8")
                seal(partial)
        except (OSError, SafetensorError) as error:
            raise StorageError(_storage_message(self.path(step), needed, error)) from error
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old), ignore_errors=True)
        if self.on_saved:
            self.on_saved()
        return self.path(step)

    def set_damaged_aside(self) -> list[str]:
        """Put every newest checkpoint aside until one is whole; return a line for each, which says what is wrong."""
        lines: list[str] = []
        for step in reversed(self.steps()):
            fault = find_damage(self.path(step))
            if fault is None:
                break
            aside = set_aside(self.path(step), "damaged")
            lines.append(f"checkpoint {self.path(step)} is damaged: {fault}; it is now {aside.name}")
        return lines


def load_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read the sets of tensors in a checkpoint's directory, by name. Raises RunError for one that is not whole."""
    if (fault := find_damage(path)) is not None:
        raise RunError(f"checkpoint {path} is damaged: {fault}; remove it to go on from an older one")
    try:
        return {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (OSError, SafetensorError) as error:
        raise RunError(f"checkpoint {path} cannot be read ({error}); remove it to go on from an older one") from error


def _storage_message(path: Path, needed: int, error: Exception) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if not full:
        return f"checkpoint {path} could not be written: {error}"
    free = free_bytes(path)
    return (
        f"no space for checkpoint {path}: it needs {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free; "
        "make room and run the same command again, earlier checkpoints are whole"
    )
