"""A JSON Lines file that a run adds to while it goes on: each line carries its checksum, and a full disk loses none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from rayqd.checksums import DamagedError, from_checked_json, to_checked_line
from rayqd.errors import StorageError
from rayqd.files import set_aside, write_text


class LinesFile:
    """The writer of one file, of which there is one at a time. What a killed one left of a line is cut off first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_cut = False
        self._waiting: list[bytes] = []

    def append(self, row: Mapping[str, object]) -> str | None:
        """Add a line. What cannot be written waits for the next call; returns a line for the user when that changes."""
        waited = len(self._waiting)
        self._waiting.append(to_checked_line(row).encode())
        try:
            self._write()
        except OSError as error:
            if waited:
                return None
            return f"{self.path} cannot be written ({error.strerror}): its lines wait in memory until it can"
        return f"{self.path} is written again, with the {waited} lines that waited" if waited else None

    def finish(self) -> None:
        """Write what still waits. Raises StorageError where that cannot be."""
        try:
            if self._waiting:
                self._write()
        except OSError as error:
            raise StorageError(
                f"{self.path} lacks its last {len(self._waiting)} lines ({error.strerror}): make room and run again"
            ) from error

    def _write(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not self._is_cut:
                os.ftruncate(descriptor, _end_of_last_line(descriptor))
                self._is_cut = True
            while self._waiting:
                _append_whole(descriptor, self._waiting[0])
                del self._waiting[0]
        finally:
            os.close(descriptor)


def read_lines(path: Path) -> tuple[list[dict[str, JsonValue]], int]:
    """Return the rows that are whole, and how many are not; an end without a newline is a row in the making."""
    try:
        whole = path.read_bytes().rpartition(b"\n")[0]
    except FileNotFoundError:
        return [], 0
    return parse_lines(whole)


def parse_lines(text: bytes) -> tuple[list[dict[str, JsonValue]], int]:
    """Return the objects in whole lines, and how many lines hold none or another than was written."""
    rows: list[dict[str, JsonValue]] = []
    num_damaged = 0
    for line in text.split(b"\n"):
        try:
            if line:
                rows.append(from_checked_json(line))
        except DamagedError:
            num_damaged += 1
    return rows, num_damaged


def keep_lines(path: Path, wanted: Callable[[Mapping[str, JsonValue]], bool]) -> str | None:
    """Drop the rows that are not `wanted`; where some are damaged, put the old file aside and say so in a line."""
    rows, num_damaged = read_lines(path)
    kept = "".join(to_checked_line(row) for row in rows if wanted(row))
    if not num_damaged:
        if rows:
            write_text(path, kept)
        return None
    aside = set_aside(path, "damaged")
    write_text(path, kept)
    return f"{path}: {num_damaged} damaged lines are left out; the file as it was is now {aside.name}"


def _end_of_last_line(descriptor: int) -> int:
    """Return the length of the file up to its last newline, which is not far from its end."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end:
        start = max(0, end - (1 << 16))
        if (newline := os.pread(descriptor, end - start, start).rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0


def _append_whole(descriptor: int, line: bytes) -> None:
    """Write all of `line` at the end, or nothing of it."""
    start = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        os.ftruncate(descriptor, start)
        raise
