"""Files and directories that are whole or absent: written beside their place under a passing name, then renamed.

A process may be killed at any moment; whoever looks meanwhile sees the old content or the new, never half of either.
Where a machine may lose its power too, the content is on the disk before the name is.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayqd.errors import StorageError

_REMOVED = ".removed"
_SEPARATORS = {"\\", "\0"}  # of some system


@contextmanager
def replace_file(path: Path, *, concurrent: bool = False, durable: bool = True) -> Iterator[Path]:
    """Yield the path to write to; it becomes `path` when the block ends, and is removed when the block raises.

    The passing name is the same each time, so that what a killed process left is overwritten by the next attempt.
    `concurrent`: other processes may write `path` at the same moment, so each has a passing name of its own. Without
    `durable` nobody waits for the disk: for what is checked when it is read, and can be made again.
    """
    owner = f".{os.getpid()}" if concurrent else ""
    partial = path.with_name(f".{path.name}{owner}.partial")
    try:
        yield partial
        if durable:
            flush_to_disk(partial)
        partial.replace(path)
        if durable:
            flush_to_disk(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Put `text`, as UTF-8, in place of `path`; raises StorageError when that fails."""
    try:
        with replace_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror}") from error


@contextmanager
def replace_directory(directory: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yield an empty directory to fill; it takes the place of `directory` when the block ends, and goes when it raises.

    Parents are made. What was there before comes back where the last rename fails. `concurrent`: other processes may
    make the same directory at the same moment; the first one's stays, and the others' go.
    """
    directory = directory.absolute()
    owner = f".{os.getpid()}" if concurrent else ""
    partial = directory.with_name(f".{directory.name}{owner}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if not (concurrent and directory.exists()):
            _swap_in(partial, directory)
            flush_to_disk(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Remove a directory, as far as that can be; who is killed meanwhile leaves nothing of it under its name."""
    retired = directory.with_name(f".{directory.name}{_REMOVED}")
    shutil.rmtree(retired, ignore_errors=True)
    with suppress(OSError):
        directory.rename(retired)
    shutil.rmtree(retired, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove from `directory` what processes that were killed in `remove_directory` have left."""
    for left in directory.glob(f".*{_REMOVED}"):
        shutil.rmtree(left, ignore_errors=True)


def join_read(directory: Path, name: str) -> Path:
    """Return the file or folder `name`, parts divided by /, in `directory`, where the name was read from somewhere.

    Raises ValueError where it would lie elsewhere, or be called otherwise on some machine.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or set(part) & _SEPARATORS for part in parts):
        raise ValueError(f"names {name!r}, which is outside of it")
    return directory.joinpath(*parts)


def set_aside(path: Path, why: str) -> Path:
    """Rename a directory or file to one with `why` behind its name, in place of an earlier one; return where it is."""
    aside = path.with_name(f"{path.name}-{why}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.replace(aside)


def flush_to_disk(path: Path) -> None:
    """Return when the file's content, or a directory's names, are on the disk; at once where its system cannot tell."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # network and FUSE mounts
            raise
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Return the free space where `path` is, or will be."""
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free


def directory_bytes(directory: Path) -> int:
    """Return the bytes of all files under `directory`."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def _swap_in(partial: Path, directory: Path) -> None:
    if not directory.exists():
        partial.rename(directory)
        return
    retired = directory.with_name(f"{partial.name}.retired")
    shutil.rmtree(retired, ignore_errors=True)
    directory.rename(retired)
    try:
        partial.rename(directory)
    except OSError:
        retired.rename(directory)
        raise
    shutil.rmtree(retired, ignore_errors=True)
