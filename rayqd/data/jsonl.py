"""A JSON Lines file that is only ever appended to: whatever cuts a write off, the lines before it stay."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, cast

from rayqd.errors import RunError, StorageError
from rayqd.files import replace_file

RowT = TypeVar("RowT", bound=Mapping[str, object])  # a TypedDict: what stands in every line


class JsonlFile(Generic[RowT]):
    """To be used in a `with`, which holds a lock. Half a line at the end, of a writer that was killed, is cut off."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`. Raises RunError while another process has it, StorageError where it cannot be."""
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

    def __enter__(self) -> JsonlFile[RowT]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock, and remove the file if it is still empty."""
        if os.fstat(self._file).st_size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def rows(self) -> Iterator[RowT]:
        """Yield every row in the file's order. Raises RunError at a line that is no JSON object."""
        yield from (row for row, _, _ in self._rows_with_offsets())

    def append(self, row: RowT) -> None:
        """Write `row`; it survives this process from the moment this returns. Raises StorageError on a full disk."""
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._write_error(error) from error

    def sort(self, key: Callable[[RowT], int]) -> None:
        """Put the lines in the order of `key`, in a new file that replaces this one at once; nothing may follow."""
        spans = sorted((key(row), start, length) for row, start, length in self._rows_with_offsets())
        try:
            with replace_file(self.path) as partial, self.path.open("rb") as stream, partial.open("wb") as ordered:
                for _, start, length in spans:
                    stream.seek(start)
                    ordered.write(stream.read(length))
                ordered.flush()
                os.fsync(ordered.fileno())
        except OSError as error:
            raise self._write_error(error) from error

    def _rows_with_offsets(self) -> Iterator[tuple[RowT, int, int]]:
        """Yield each row with its line's start and length in bytes."""
        start = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield self._parse(line, number), start, len(line)
                start += len(line)

    def _parse(self, line: bytes, number: int) -> RowT:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(f"{self.path}:{number}: the line is damaged; take it out, and its row is written again")
        return cast(RowT, row)

    def _write_error(self, error: OSError) -> StorageError:
        return StorageError(f"{self.path} could not be written: {error.strerror}; make room, and run again")


def _end_of_last_line(stream: BinaryIO, chunk_bytes: int = 1 << 16) -> int:
    """Return the offset after the last line break; 0 where there is none."""
    end = stream.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - chunk_bytes)
        stream.seek(start)
        offset = stream.read(end - start).rfind(b"\n")
        if offset >= 0:
            return start + offset + 1
        end = start
    return 0
