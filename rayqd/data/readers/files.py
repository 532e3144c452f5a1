"""Files by their kind."""

from __future__ import annotations

import bz2
import csv
import gzip
import logging
import lzma
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, cast

from rayqd.data.nearest import nearest
from rayqd.data.readers.identity import identify_file
from rayqd.data.readers.json_array import read_json_array
from rayqd.data.readers.kind import Kind, kind_of
from rayqd.data.readers.lines import read_json_lines, read_text
from rayqd.data.readers.table import Table, concatenate
from rayqd.errors import DataError
from rayqd.files import replace_file


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow as pa

    return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", ".gz", gzip.open),
    (b"\x28\xb5\x2f\xfd", ".zst", _open_zstd),
    (b"BZh", ".bz2", bz2.open),
    (b"\xfd7zXZ\x00", ".xz", lzma.open),
)
_MAGIC_BYTES = 8


def read_files(name: str, paths: Sequence[Path]) -> Table:
    """Open several files as one table, in the order given; each may be of another kind."""
    return concatenate(name, [read_file(path, str(path)) for path in paths])


def read_file(path: Path, name: str) -> Table:
    """Open a file of any kind that is read, known to its user as `name`.

    Raises DataError for one that is missing, damaged, or of a kind that is not read.
    """
    try:
        plain, plain_name = _decompress(path, name)
        kind = kind_of(plain, plain_name)
        if kind is Kind.JSON_LINES:
            return read_json_lines(plain, name)
        if kind is Kind.JSON_ARRAY:
            return read_json_array(plain, name)
        return read_text(plain, name) if kind is Kind.TEXT else _read_table(plain, name, kind)
    except OSError as error:
        why = error.strerror or str(error)
        raise DataError(f"cannot read the data file {name}: {why}; {_suggest_file(path)}") from error


def _suggest_file(path: Path) -> str:
    """Say what may be meant by a file that is not there."""
    if path.exists() or not path.parent.is_dir():
        return "check its path"
    near = nearest(path.name, (file.name for file in path.parent.iterdir() if file.is_file()))
    return f"did you mean {near}?" if near else "check its path"


def _decompress(path: Path, name: str) -> tuple[Path, str]:
    """Return an uncompressed copy of `path` in the cache, and the name without its suffix; what is plain as it is."""
    with path.open("rb") as stream:
        head = stream.read(_MAGIC_BYTES)
    found = next(((suffix, open_) for magic, suffix, open_ in _COMPRESSIONS if head.startswith(magic)), None)
    if found is None:
        return path, name
    suffix, open_ = found
    target = cached_path(path)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                replace_file(target, concurrent=True) as partial,
                closing(open_(path)) as source,
                partial.open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy, 1 << 20)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            what = " ".join(str(error).split())
            raise DataError(f"{name}: cannot be decompressed ({what}): it is damaged, or was cut off") from error
    return target, name.removesuffix(suffix)


def cached_path(path: Path) -> Path:
    """Return where what is made of the file as it stands now is kept; another one once the file changes."""
    from rayqd.model.source import cache_dir

    state = path.stat()
    key = f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}"
    return cache_dir() / "data" / blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _read_table(path: Path, name: str, kind: Kind) -> Table:
    """Open what the library converts to memory-mapped Arrow, once: it keeps the copy in its own cache."""
    import datasets

    options: dict[str, Any] = {}
    if kind in (Kind.CSV, Kind.TSV):  # every cell is text: "007", "1e5", "NA" and "null" are answers like others
        separator = "," if kind is Kind.CSV else "\t"
        text = {column: datasets.Value("string") for column in _header(path, name, separator)}
        options = {"features": datasets.Features(text), "sep": separator, "keep_default_na": False}
        options |= {"encoding": "utf-8-sig"}
    builder = {Kind.PARQUET: "parquet", Kind.ARROW: "arrow"}.get(kind, "csv")
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # it logs what it raises, which is told once
    try:
        rows = datasets.load_dataset(builder, data_files={"train": [str(path)]}, split="train", **options)
    except Exception as error:  # pyarrow's, pandas' and the library's own have no base class of theirs in common
        cause = error.__cause__ or error
        what = " ".join(str(cause).split()) or type(cause).__name__
        raise DataError(f"{name}: cannot be read as {kind}: {what}") from error
    return table_of_dataset(rows, name, identity=lambda: f"{kind} {identify_file(path)}")


def table_of_dataset(
    rows: Any, name: str, *, identity: Callable[[], str] | None, remarks: tuple[str, ...] = ()
) -> Table:
    """Return a `datasets.Dataset`, which is memory-mapped, as a table; `identity` says what it holds."""

    def fetch_many(indices: Sequence[int]) -> list[object]:
        columns = cast("dict[str, list[object]]", rows[list(indices)])
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return Table(
        name=name,
        num_rows=len(rows),
        fetch=lambda index: rows[index],
        location=lambda index: f"{name}, row {index}",
        remarks=remarks,
        identity=identity,
        fetch_many=fetch_many,
    )


def _header(path: Path, name: str, separator: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            columns = next(csv.reader(stream, delimiter=separator), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 (byte {error.start})") from error
    if not columns:
        raise DataError(f"{name}: is empty: its first line must name the columns")
    other = next((mark for mark in ";\t|" if mark != separator and mark in columns[0]), None)
    if len(columns) == 1 and other is not None:
        way_out = "call it .tsv" if other == "\t" else f"write {separator!r} between them, as any spreadsheet can"
        raise DataError(f"{name}: has {other!r} between its columns and not {separator!r}: {way_out}")
    return columns
