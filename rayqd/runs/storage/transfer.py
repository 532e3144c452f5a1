"""How bytes go to a storage, and how it is seen that they do.

A stream may take a file at memory's speed and send it when it is closed, for minutes in which no call returns. So what
tells of progress is not that a block was taken, but what the other end of this process's connections has acknowledged.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_BLOCK_BYTES = 1 << 20  # of a file at a time
_SYNC_BYTES = 16 << 20
_LOOK_SECONDS = 0.5
_PROGRESS_BYTES = 64 << 10  # requests to a server that never answers are less, also when they are made again
_SYNC_FILE_RANGE = 1 | 2 | 4  # wait for what is on its way, write, wait
_TCP_INFO_BYTES = 136
_ACKED_AND_RECEIVED = 120  # where they are in Linux's tcp_info, eight bytes each


def send(source: IO[bytes], filesystem: Any, path: str, on_progress: Callable[[], None]) -> None:
    """Write what `source` has to `path`, block by block, and tell of each."""
    stream = (
        _SyncedFile(path) if filesystem.type_name == "local" else filesystem.open_output_stream(path, compression=None)
    )
    with stream:
        while block := source.read(_BLOCK_BYTES):
            stream.write(block)
            on_progress()


class _SyncedFile:
    """A file of a disk, perhaps one over a network, that gets what is written while it is written, not in `close`."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("wb")  # noqa: SIM115 - closed in __exit__
        self._num_bytes = 0  # since the last that were waited for

    def __enter__(self) -> _SyncedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, block: bytes) -> None:
        self._file.write(block)
        self._num_bytes += len(block)
        if self._num_bytes >= _SYNC_BYTES:
            self._file.flush()
            _write_back(self._file.fileno())
            self._num_bytes = 0


def _write_back(handle: int) -> None:
    """Have the system write what it holds of a file, and wait for it, where the system can; `close` tells of errors.

    Not fsync: where a bucket is mounted as a disk, that uploads the whole file again each time.
    """
    with suppress(AttributeError):  # Linux alone has it
        ctypes.CDLL(None).sync_file_range(handle, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE)


@contextmanager
def watch_traffic(on_progress: Callable[[], None]) -> Generator[None]:
    """Call `on_progress` from a thread whenever more has gone through this process's connections, while the block runs.

    Where the system does not tell that, nothing happens.
    """
    seen = _acknowledged()
    num_bytes = 0

    def look() -> None:
        nonlocal seen, num_bytes
        before, seen = seen, _acknowledged()
        num_bytes += sum(max(0, each - before.get(name, 0)) for name, each in seen.items())
        if num_bytes >= _PROGRESS_BYTES:
            num_bytes = 0
            on_progress()

    with _repeat(look):
        yield


@contextmanager
def watch_growth(directory: Path, on_progress: Callable[[], None]) -> Generator[None]:
    """Call `on_progress` from a thread whenever more has come into `directory`, as long as the block takes."""
    num_bytes = 0

    def look() -> None:
        nonlocal num_bytes
        before, num_bytes = num_bytes, sum(each.stat().st_size for each in directory.rglob("*"))
        if num_bytes > before:
            on_progress()

    with _repeat(look):
        yield


@contextmanager
def _repeat(look: Callable[[], None]) -> Generator[None]:
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            look()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _acknowledged() -> dict[str, int]:
    """Return the bytes that each TCP connection of this process has received, or knows to have been received."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError):  # no Linux
        for handle in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed meanwhile, or no TCP
                name = os.readlink(f"/proc/self/fd/{handle}")
                if name.startswith("socket:"):
                    found[name] = _count(int(handle))
    return found


def _count(handle: int) -> int:
    with socket.socket(fileno=os.dup(handle)) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return sum(struct.unpack_from("QQ", info, _ACKED_AND_RECEIVED)) if len(info) == _TCP_INFO_BYTES else 0
