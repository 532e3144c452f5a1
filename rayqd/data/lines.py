"""JSON objects, one a line, in a file that is only ever added to: whatever cuts it off, the lines before stay."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rayqd.errors import RunError, StorageError
from rayqd.files import replace_file

Row = dict[str, Any]


class Lines:
    """To be used in a `with`, which holds a lock. Half a line at the end, of a writer that was killed, is taken off."""

    def __init__(self, path: Path) -> None:
        """Opens `path` or makes it. Raises RunError while another process has it, StorageError where it cannot be."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with path.open("rb") as stream:
                end = _end_of_last_line(stream)
            os.ftruncate(self._file, end)
        except BlockingIOError:
            os.close(self._file)
            raise RunError(f"{path} is in use: another process is writing it") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back. A file that is still empty goes."""
        if os.fstat(self._file).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def rows(self) -> Iterator[Row]:
        """What is there. Raises RunError at a line that is no JSON object."""
        yield from (row for row, _, _ in self._places())

    def append(self, row: Row) -> None:
        """In the file, whatever becomes of this process, when it returns. Raises StorageError when it cannot be."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._failed(error) from error

    def sort(self, key: Callable[[Row], int]) -> None:
        """Puts the lines in the order of `key`, in a new file that takes this one's place at once; nothing follows."""
        places = sorted((key(row), start, length) for row, start, length in self._places())
        try:
            with replace_file(self.path) as partial, self.path.open("rb") as stream, partial.open("wb") as ordered:
                for _, start, length in places:
                    stream.seek(start)
                    ordered.write(stream.read(length))
                ordered.flush()
                os.fsync(ordered.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def _places(self) -> Iterator[tuple[Row, int, int]]:
        """Each row, with where its line starts and how long it is, in bytes."""
        start = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield self._row(line, number), start, len(line)
                start += len(line)

    def _row(self, line: bytes, number: int) -> Row:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(f"{self.path}:{number}: the line is damaged; take it out, and its row is written again")
        return row

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"{self.path} could not be written: {error.strerror}; make room, and run again")


def _end_of_last_line(stream: BinaryIO, chunk_bytes: int = 1 << 16) -> int:
    """Where the last line break ends; 0 where there is none."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - chunk_bytes)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
