"""Files of a row a line: only where each line begins is kept, so that memory grows with neither length nor number much.

Lines end at a line feed alone: str.splitlines would also cut at U+2028 and others, which JSON allows inside text.
"""

from __future__ import annotations

import codecs
import json
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayqd.data.readers.table import Table
from rayqd.errors import DataError

_CHUNK_BYTES = 1 << 24
_WHITE_SPACE = b" \t\r\n\x0b\x0c"


def read_json_lines(path: Path, name: str) -> Table:
    """Open a file with a JSON object a line; lines of white space are no rows."""
    return _read_lines(path, name, _parse_json)


def read_text(path: Path, name: str) -> Table:
    """Open plain text as rows {"text": line}; lines of white space are no rows."""
    table = _read_lines(path, name, _parse_text)
    return Table(
        name=name,
        num_rows=table.num_rows,
        fetch=table.fetch,
        location=table.location,
        remarks=(f"{name}: taken as plain text, a row a line",),
    )


def _read_lines(path: Path, name: str, parse: Callable[[bytes], object]) -> Table:
    content = _map(path)
    starts, ends = _line_bounds(path)
    numbers = np.arange(1, len(starts) + 1)
    kept = _not_blank(content, starts, ends)
    starts, ends, numbers = starts[kept], ends[kept], numbers[kept]
    return Table(
        name=name,
        num_rows=len(starts),
        fetch=lambda index: parse(content[int(starts[index]) : int(ends[index])]),
        location=lambda index: f"{name}:{numbers[index]}",
    )


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as stream:
        if path.stat().st_size == 0:  # which cannot be mapped
            return b""
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _line_bounds(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each line starts and ends, without its line feed and without the file's byte order mark."""
    breaks: list[NDArray[np.int64]] = []
    size = 0
    with path.open("rb") as stream:
        start = len(codecs.BOM_UTF8) if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        stream.seek(0)
        while chunk := stream.read(_CHUNK_BYTES):
            breaks.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + size)
            size += len(chunk)
    ends = np.concatenate([*breaks, np.array([size])]).astype(np.int64)
    return np.concatenate([np.array([start]), ends[:-1] + 1]).astype(np.int64), ends


def _not_blank(content: mmap.mmap | bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which lines hold more than white space; few begin with it, so few are looked at whole."""
    kept = ends > starts
    for line in np.flatnonzero(kept).tolist():
        start = int(starts[line])
        if content[start] in _WHITE_SPACE and not content[start : int(ends[line])].strip():
            kept[line] = False
    return kept


def _parse_json(line: bytes) -> object:
    try:
        return json.loads(_decode(line))
    except json.JSONDecodeError as error:
        raise DataError(f"the line is not one JSON object ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # numbers of over 4300 digits, brackets nested thousands deep
        raise DataError(f"the line is JSON that cannot be read ({error})") from error


def _parse_text(line: bytes) -> object:
    return {"text": _decode(line.removesuffix(b"\r"))}


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start} of the line)") from error
