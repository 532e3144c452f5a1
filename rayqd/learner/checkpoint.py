"""What a checkpoint holds: safetensors files of what is trained, the optimizer's state, and digests of the weights.

A checkpoint is whole or absent. One whose bytes have changed since, or of which a file is gone, is put aside before a
run goes on, and the next older one takes its place.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from rayqd.checksums import find_damage, seal
from rayqd.errors import RunError, StorageError
from rayqd.files import free_bytes, remove_directory, remove_leftovers, replace_directory, set_aside

DIGESTS = "digests"  # the set of tensors that says what the weights came to, see `rayqd.export.digest`

_NAME = re.compile(r"step-(\d{6,})$")
_BEST_NAME = re.compile(r"best-(\d{6,})$")


def step_of(name: str) -> int | None:
    """Return the number in a checkpoint's name, `step-000100`; None for any other name."""
    match = _NAME.match(name)
    return int(match[1]) if match else None


def best_step_of(name: str) -> int | None:
    """Return the number in the name of weights that were the best, `best-000100`; None for any other name."""
    match = _BEST_NAME.match(name)
    return int(match[1]) if match else None


class Checkpoints:
    """The directories `step-000100` of a run; each holds one safetensors file for each set of tensors.

    `best-000100` has the weights alone, of steps that were the best until then: each is better than those before it.
    """

    on_saved: Callable[[], None] | None = None  # called after a checkpoint was written and older ones removed
    on_flush: Callable[[], None] | None = None  # called when nobody will save any more: see `flush`
    held: Collection[int] = ()  # steps whose checkpoints stay for now, because somebody reads them

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        return self._list(step_of)

    def best_steps(self) -> list[int]:
        """Return the steps whose weights were the best and are kept, the best last."""
        return self._list(best_step_of)

    def _list(self, parse: Callable[[str], int | None]) -> list[int]:
        if not self.directory.is_dir():
            return []
        return sorted(step for path in self.directory.iterdir() if (step := parse(path.name)) is not None)

    def path(self, step: int) -> Path:
        """Return the directory of the checkpoint after `step` steps, whether it is there or not."""
        return self.directory / f"step-{step:06d}"

    def best_path(self, step: int) -> Path:
        """Return the directory of the weights after `step` steps that were the best, whether it is there or not."""
        return self.directory / f"best-{step:06d}"

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], texts: Mapping[str, str] | None = None) -> Path:
        """Write a checkpoint and forget all but the newest `keep`; StorageError leaves the older ones as they were.

        `texts`: the content of further files, by name; an empty one is not written.
        """
        path = self._write(self.path(step), tensors, texts or {})
        self.forget_old()
        self._forget_superseded()
        if self.on_saved:
            self.on_saved()
        return path

    def save_best(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> Path:
        """Write the weights after `step`, the best so far; StorageError leaves the earlier ones as they were."""
        path = self._write(self.best_path(step), tensors, {})
        self._forget_superseded()
        if self.on_saved:
            self.on_saved()
        return path

    def forget_old(self) -> None:
        """Remove all but the newest `keep`, and those that are `held`."""
        remove_leftovers(self.directory)
        for old in self.steps()[: -self.keep]:
            if old not in self.held:
                remove_directory(self.path(old))

    def flush(self) -> None:
        """Return when what `on_saved` began is done, or is given up: this process is about to end."""
        if self.on_flush:
            self.on_flush()

    def forget_best_after(self, step: int) -> None:
        """Remove best weights of later steps, which will be done again."""
        for later in self.best_steps():
            if later > step:
                remove_directory(self.best_path(later))

    def set_damaged_aside(self) -> list[str]:
        """Put every newest checkpoint aside until one is whole; return a line for each, which says what is wrong.

        Of the best weights all that are damaged go.
        """
        lines: list[str] = []
        for step in reversed(self.steps()):
            if (line := _set_aside_if_damaged(self.path(step))) is None:
                break
            lines.append(line)
        best = [_set_aside_if_damaged(self.best_path(step)) for step in self.best_steps()]
        return [*lines, *filter(None, best)]

    def _write(self, path: Path, tensors: dict[str, dict[str, Tensor]], texts: Mapping[str, str]) -> Path:
        needed = sum(t.nbytes for group in tensors.values() for t in group.values())
        try:
            with replace_directory(path) as partial:
                for name, group in tensors.items():
                    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
                    save_file(contiguous, partial / f"{name}.safetensors")
                for name, text in texts.items():
                    if text:
                        (partial / name).write_text(text, encoding="utf-8")
                seal(partial)
        except (OSError, SafetensorError) as error:
            raise StorageError(_storage_message(path, needed, error)) from error
        return path

    def _forget_superseded(self) -> None:
        """Remove best weights that nobody can come back to: the newest, and those as of each checkpoint, stay.

        A checkpoint may have been written before its own step was measured, or after.
        """
        best = self.best_steps()
        needed = set(best[-1:])
        for step in self.steps():
            needed |= {*[each for each in best if each <= step][-1:], *[each for each in best if each < step][-1:]}
        for step in set(best) - needed:
            remove_directory(self.best_path(step))


def _set_aside_if_damaged(path: Path) -> str | None:
    if (fault := find_damage(path)) is None:
        return None
    return f"checkpoint {path} is damaged: {fault}; it is now {set_aside(path, 'damaged').name}"


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
