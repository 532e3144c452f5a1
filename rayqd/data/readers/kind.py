"""What a file is: by its first bytes where these tell, and by its name where they do not."""

from __future__ import annotations

import codecs
import json
from enum import StrEnum
from pathlib import Path

from rayqd.errors import DataError

HEAD_BYTES = 1 << 16


class Kind(StrEnum):
    """A kind of file that there is a reader for."""

    JSON_LINES = "JSON Lines"
    JSON_ARRAY = "a JSON array"
    PARQUET = "a parquet file"
    ARROW = "an Arrow file"
    CSV = "comma-separated values"
    TSV = "tab-separated values"
    TEXT = "plain text"


READABLE = ".jsonl, .json, .parquet, .csv, .tsv, .txt or .arrow, also compressed as .gz, .zst, .bz2 or .xz"

_BY_SUFFIX = {
    ".jsonl": Kind.JSON_LINES,
    ".ndjson": Kind.JSON_LINES,
    ".json": Kind.JSON_ARRAY,
    ".parquet": Kind.PARQUET,
    ".pq": Kind.PARQUET,
    ".arrow": Kind.ARROW,
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".txt": Kind.TEXT,
    ".text": Kind.TEXT,
    ".md": Kind.TEXT,
}
_SUFFIXES = {
    Kind.JSON_LINES: ".jsonl", Kind.JSON_ARRAY: ".json", Kind.PARQUET: ".parquet", Kind.ARROW: ".arrow",
    Kind.CSV: ".csv", Kind.TSV: ".tsv", Kind.TEXT: ".txt",
}  # fmt: skip
_BY_BYTES = ((b"PAR1", Kind.PARQUET), (b"ARROW1", Kind.ARROW), (b"\xff\xff\xff\xff", Kind.ARROW))
_UNREADABLE = (
    (b"PK\x03\x04", "a ZIP archive (or an office document)"),
    (b"\x89HDF", "an HDF5 file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a RIFF file (sound, video or a WebP picture)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
)
_JSON = (Kind.JSON_LINES, Kind.JSON_ARRAY)


def kind_of(path: Path, name: str) -> Kind:
    """Return the kind of the uncompressed file `path`, which its user knows as `name`.

    Raises DataError, by its first bytes, for one that no reader takes, and for one that is another kind than its name
    says.
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    named = _BY_SUFFIX.get(Path(name).suffix.lower())
    for magic, what in _UNREADABLE:
        if head.startswith(magic):
            raise DataError(f"{name}: is {what} by its first bytes: give {READABLE}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (0 in head[:2] and head[2:4].count(0) == 1):
        raise DataError(f"{name}: is text in UTF-16 by its first bytes: save it as UTF-8")
    binary = next((kind for magic, kind in _BY_BYTES if head.startswith(magic)), None)
    if binary is None and b"\x00" in head:
        raise DataError(
            f"{name}: its first bytes ({head[:4].hex(' ')}) are of no kind that rayqd reads: give {READABLE}"
        )
    found = binary or _kind_of_text(head, named, name)
    if found is None:
        raise DataError(f"{name}: is text, but neither JSON nor of a name that says what: call it .txt or .csv")
    if named is not None and found is not named and not (found in _JSON and named in (*_JSON, Kind.TEXT)):
        what = f"{found} by its first bytes, and {named} by its name"
        raise DataError(f"{name}: is {what}: rename it to {Path(name).stem}{_SUFFIXES[found]}")
    return found


def _kind_of_text(head: bytes, named: Kind | None, name: str) -> Kind | None:
    """Return None for text that is no JSON, under a name that says nothing. Raises DataError for JSON of no rows."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    is_json = text[:1] in (b"{", b"[") and (named is not Kind.TEXT or _is_json(text))
    if named in (Kind.CSV, Kind.TSV):
        return Kind.JSON_LINES if text[:1] == b"{" and _is_json(text) else named
    if is_json and named is Kind.JSON_ARRAY and _goes_on(text):
        raise DataError(
            f"{name}: is one JSON object over several lines, and no rows: write its rows as an array, "
            "or an object a line"
        )
    if is_json and text[:1] == b"{" and text.partition(b"\n")[0].strip() == b"{":
        raise DataError(f"{name}: has JSON objects over several lines: write one a line, as `jq -c . {name}` does")
    if is_json:
        return Kind.JSON_LINES if text[:1] == b"{" else Kind.JSON_ARRAY
    if named in (Kind.PARQUET, Kind.ARROW):
        return Kind.TEXT
    if named is Kind.JSON_ARRAY:
        return Kind.JSON_LINES  # whose reader says what is wrong with which line
    return named or (None if text else Kind.JSON_LINES)


def _goes_on(text: bytes) -> bool:
    """Return whether the first line begins an object that later ones end."""
    line, line_break, _ = text.partition(b"\n")
    return text[:1] == b"{" and bool(line_break) and not line.rstrip().endswith(b"}")


def _is_json(text: bytes) -> bool:
    """Return whether the first line is a JSON object, or an array begins with one."""
    if text[:1] == b"[":
        return text[1:].lstrip()[:1] == b"{"
    try:
        return isinstance(json.loads(text.partition(b"\n")[0]), dict)
    except ValueError:
        return False
