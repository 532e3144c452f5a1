"""A file that is one JSON array of rows: where each begins and ends is found in one pass, a piece after the other.

Bytes are looked at as Latin-1, in which each is one character: whatever gives JSON its structure is ASCII, so a place
in the text is a place in the file. Memory grows with the number of rows alone, and slowly.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rayqd.data.readers.content import Content
from rayqd.data.readers.identity import identify_file
from rayqd.data.readers.table import Table
from rayqd.errors import DataError

_CHUNK_BYTES = 1 << 24
_LONGEST_WORD = 16  # -Infinity and \ud83d\ude00 are the longest of which a part may stand where a piece ends
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_json_array(path: Path, name: str) -> Table:
    """Open it. Raises DataError with the line where it is no JSON, or no array."""
    places = array("q")
    with path.open("rb") as stream:
        scanner = _Scanner(stream, name)
        scanner.expect("[")
        if scanner.next_character() == "]":
            scanner.expect("]")
        else:
            places.extend(scanner.skip_value())
            while scanner.expect(",]") == ",":
                places.extend(scanner.skip_value())
        scanner.expect("")
    bounds = np.frombuffer(places, np.int64).reshape(-1, 2) if places else np.zeros((0, 2), np.int64)
    content = Content(path)
    return Table(
        name=name,
        num_rows=len(bounds),
        fetch=lambda index: _parse(content.read(int(bounds[index, 0]), int(bounds[index, 1]))),
        location=lambda index: f"{name}, element {index}",
        identity=lambda: identify_file(path),
    )


def _parse(element: bytes) -> object:
    try:
        return json.loads(element.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start} of the element)") from error


class _Scanner:
    """Goes through JSON text without keeping it."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._text = ""  # a piece of the file
        self._position = 0  # in it
        self._offset = 0  # of the piece, in the file
        self._num_lines, self._column = 0, 0  # line breaks before the piece, and bytes since the last of them
        if stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self._offset = len(codecs.BOM_UTF8)
        stream.seek(self._offset)

    def next_character(self) -> str:
        """Move to what comes after white space and return it; "" at the end of the file."""
        while True:
            found = _SPACE.match(self._text, self._position)
            self._position = found.end() if found else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def expect(self, characters: str) -> str:
        """Move behind the next character and return it. Raises DataError unless it is one of these; "": the end."""
        found = self.next_character()
        if not characters and found:
            raise self._broken("something stands behind it", self._position)
        if found not in tuple(characters or [""]):
            what = " or ".join(characters)
            raise self._broken(f"expecting {what}, got {found or 'the end of the file'}", self._position)
        self._position += 1
        return found

    def skip_value(self) -> tuple[int, int]:
        """Move behind the next value; return where in the file it starts and ends. Raises DataError if it is broken."""
        self.next_character()
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._may_go_on(error) and self._read_more():
                    continue
                raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # numbers of over 4300 digits, brackets nested thousands deep
                raise DataError(f"{self._name}: is JSON that cannot be read ({error})") from error
            if end + _LONGEST_WORD <= len(self._text) or not self._read_more():  # a number may go on
                break
        start, self._position = self._position, end
        return self._offset + start, self._offset + end

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Return whether the fault may be that the piece ends."""
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_WORD

    def _read_more(self) -> bool:
        """Lay what comes next in the file behind what is still to be looked at; return False where nothing comes."""
        rest = self._text[self._position :]
        more = self._stream.read(max(_CHUNK_BYTES, len(rest)))
        if not more:
            return False
        self._column = self._column_of(self._position)
        self._num_lines += self._text.count("\n", 0, self._position)
        self._offset += self._position
        self._text, self._position = rest + more.decode("latin-1"), 0
        return True

    def _column_of(self, position: int) -> int:
        last_break = self._text.rfind("\n", 0, position)
        return position - last_break - 1 if last_break >= 0 else self._column + position

    def _broken(self, what: str, position: int) -> DataError:
        line = self._num_lines + self._text.count("\n", 0, position) + 1
        return DataError(
            f"{self._name}:{line}: the array is broken here ({what}, column {self._column_of(position) + 1}): mend it, "
            "or write a JSON object a line"
        )
