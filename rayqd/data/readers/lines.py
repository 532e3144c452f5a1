"""Files of a row a line: only where each line begins is kept, so that memory grows with neither length nor number much.

Lines end at a line feed alone: str.splitlines would also cut at U+2028 and others, which JSON allows inside text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayqd.data.readers.content import Content
from rayqd.data.readers.identity import identify_file
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
        identity=table.identity,
    )


def _read_lines(path: Path, name: str, parse: Callable[[bytes], object]) -> Table:
    content = Content(path)
    starts, ends, first_bytes = _find_lines(path)
    kept = _not_blank(content, starts, ends, first_bytes)
    numbers = np.flatnonzero(kept) + 1
    starts, ends = starts[kept], ends[kept]
    return Table(
        name=name,
        num_rows=len(starts),
        fetch=lambda index: parse(content.read(int(starts[index]), int(ends[index]))),
        location=lambda index: f"{name}:{numbers[index]}",
        identity=lambda: identify_file(path),
    )


def _find_lines(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return where each line starts and ends, without its line feed and the file's byte order mark, and its first byte.

    Read in pieces, of which one is held at a time.
    """
    starts: list[NDArray[np.int64]] = []
    first_bytes: list[NDArray[np.uint8]] = []
    size = 0
    with path.open("rb") as stream:
        mark = stream.read(len(codecs.BOM_UTF8))
        pending = np.array([len(mark) if mark == codecs.BOM_UTF8 else 0], np.int64)
        stream.seek(0)
        while piece := stream.read(_CHUNK_BYTES):
            piece_bytes = np.frombuffer(piece, np.uint8)
            after_breaks = np.flatnonzero(piece_bytes == ord("\n")) + (size + 1)
            found = np.asarray(np.concatenate([pending, after_breaks]), np.int64)
            is_here = found < size + len(piece)
            starts.append(found[is_here])
            first_bytes.append(piece_bytes[found[is_here] - size])
            pending = found[~is_here]
            size += len(piece)
    begins = np.concatenate([*starts, pending]).astype(np.int64)
    ends = np.append(begins[1:] - 1, size).astype(np.int64)
    return begins, ends, np.concatenate([*first_bytes, np.zeros(len(pending), np.uint8)]).astype(np.uint8)


def _not_blank(
    content: Content,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    first_bytes: NDArray[np.uint8],
) -> NDArray[np.bool_]:
    """Return which lines hold more than white space; few begin with it, so few are looked at whole."""
    kept = ends > starts
    begins_white = np.isin(first_bytes, np.frombuffer(_WHITE_SPACE, np.uint8))
    for line in np.flatnonzero(kept & begins_white).tolist():
        kept[line] = bool(content.read(int(starts[line]), int(ends[line])).strip())
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
