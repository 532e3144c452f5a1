"""The rows of a data set, as conversations: those of `readers`, parsed and checked.

A row that is no conversation (`conversation.py` says what one is) is an error that names its location, or is skipped
and counted.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

from rayqd.config.data_source import QUICKSTART, is_pattern, is_url, path_of_source
from rayqd.config.sections import DataConfig
from rayqd.data.conversation import Message, Parse, UntrainedError, row_parser
from rayqd.data.left_out import Fault, LeftOut, Reason, Tally
from rayqd.data.nearest import no_such
from rayqd.data.readers import Table, fetch_url, read_directory, read_file, read_files, read_hub
from rayqd.data.readers.table import select_split
from rayqd.data.user_code import RowFilter, call_reader
from rayqd.errors import DataError

QUICKSTART_FILES = {"train": "train.jsonl", "test": "heldout.jsonl"}
CHECKED_WHOLE = 20_000  # rows of files; of more, those that a run looks at are checked

OnBadRow = Literal["auto", "error", "skip"]


class Rows:
    """Conversations by position, each read and checked when it is asked for."""

    def __init__(self, table: Table, on_bad_row: OnBadRow, parse: Parse, keep: RowFilter | None = None) -> None:
        self.name = table.name
        self.remarks = table.remarks
        """How the source was taken, where that may surprise."""
        self._table = table
        self._on_bad_row = on_bad_row
        self.parse = parse
        self._keep = keep
        self._tally = Tally()

    def __len__(self) -> int:
        return self._table.num_rows

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The rows met so far that are not used, by reason."""
        return self._tally.summary()

    def num_left_out(self, reason: Reason) -> int:
        """Count the rows met so far that are not used for `reason`; one met twice counts once."""
        return self._tally.count(reason)

    def location(self, index: int) -> str:
        """Return where the row at `index` stands, for people: "rows.jsonl:3"."""
        return self._table.location(index)

    def row(self, index: int) -> list[Message] | None:
        """Return the conversation at `index`; None if it is filtered out, or broken and those are skipped.

        Raises DataError for a broken row that is not skipped.
        """
        row = self.fetch(index)
        if not isinstance(row, Fault):
            try:
                return self.parse(row)
            except UntrainedError as error:
                row = Fault(reason=Reason.UNTRAINED, words=str(error))
            except DataError as error:
                row = Fault(reason=Reason.BROKEN, words=str(error))
        self.blame(index, row)
        return None

    def fetch(self, index: int) -> object | Fault:
        """Return the row at `index` as it stands, or why it is not used; nobody is told of that yet."""
        if self._tally.has(Reason.BROKEN, index):
            return Fault(reason=Reason.BROKEN, words="")
        try:
            row = self._table.fetch(index)
        except DataError as error:
            return Fault(reason=Reason.BROKEN, words=str(error))
        if self._keep and isinstance(row, dict) and not self._keep.keeps(index, row, self._table.location(index)):
            return Fault(reason=Reason.FILTERED, words="data.filter returned False")
        return row

    def fetch_many(self, indices: Sequence[int]) -> list[tuple[int, object | Fault]]:
        """Return what `fetch` does for each of `indices`, with these."""
        if self._table.fetch_many is None or self._keep or self._tally.count(Reason.BROKEN):
            return [(index, self.fetch(index)) for index in indices]
        try:
            return list(zip(indices, self._table.fetch_many(indices), strict=True))
        except DataError:
            return [(index, self.fetch(index)) for index in indices]

    def identity(self) -> str | None:
        """Return the digest of what the source holds now; None where nobody can tell, as with the user's own code."""
        return None if self._table.identity is None or self._keep else self._table.identity()

    def blame(self, index: int, fault: Fault) -> None:
        """Count the row at `index` as not used, or raise DataError where it is broken and those are not skipped."""
        if fault.reason is Reason.BROKEN and not self._tally.has(Reason.BROKEN, index):
            self.reject(index, fault.words)
        else:
            self.leave_out(index, fault.reason, fault.words)

    def reject(self, index: int, what: str) -> None:
        """Count the row at `index` as broken, or raise DataError with its location and what to do."""
        if self._on_bad_row != "skip":
            raise DataError(f'{self._table.location(index)}: {what}; fix it or set data.on_bad_row = "skip"')
        self.leave_out(index, Reason.BROKEN, what)

    def leave_out(self, index: int, reason: Reason, what: str) -> None:
        """Count the row at `index` as not used for `reason`; `what` says in words what is the matter with it."""
        self._tally.add(reason, index, self._table.location, what)


def read_rows(data: DataConfig, *, parse: Parse | None = None) -> Rows:
    """Open what `data` names: by its reader if it has one, else as `open_table` does.

    What a reader gives, and files of up to CHECKED_WHOLE rows, are checked to their end before this returns, everything
    else row by row as it is read. With `on_bad_row` auto a broken row is an error, but skipped in a hub set, which its
    user cannot mend. Raises DataError for a source that is missing or cannot be reached, and for a broken row unless
    those are skipped; ConfigError for a reader or a filter that cannot be called or returns something else.
    """
    parse = parse or row_parser(data)
    keep = RowFilter(data.filter) if data.filter is not None else None
    if data.reader is not None:
        table = _read_by(data.reader, data)
        return _check_all(Rows(table, data.on_bad_row, parse, keep))
    table = open_table(data.source, data.split, data.subset)
    if table is None:
        on_bad_row = "skip" if data.on_bad_row == "auto" else data.on_bad_row
        return Rows(read_hub(data.source, data.split, data.subset), on_bad_row, parse, keep)
    rows = Rows(table, data.on_bad_row, parse, keep)
    return _check_all(rows) if len(rows) <= CHECKED_WHOLE else rows


def open_table(source: str, split: str, subset: str | None) -> Table | None:
    """Open "quickstart", a file, a URL, a pattern of files or a directory; None for what must be an id on the hub.

    A file has one split, whatever that is called, of which `split` may take a part. Raises DataError.
    """
    if source == QUICKSTART:
        _check_no_subset(source, subset)
        return select_split(_read_quickstart(split), split)
    path = path_of_source(source)
    if path is not None or is_url(source) or is_pattern(source):
        _check_no_subset(source, subset)
    if path is not None:
        return select_split(read_file(path, str(path)), split)
    if is_url(source):
        return select_split(read_file(fetch_url(source), source), split)
    directory = Path(source).expanduser()
    if directory.is_dir():
        return read_directory(directory, split, subset)
    return select_split(_read_pattern(source), split) if is_pattern(source) else None


def _check_no_subset(source: str, subset: str | None) -> None:
    if subset is not None:
        raise DataError(f'{source}: is no data set with subsets: leave data.subset="{subset}" out')


def _read_pattern(source: str) -> Table:
    found = sorted(glob.glob(str(Path(source).expanduser()), recursive=True))
    paths = [path for path in map(Path, found) if path.is_file()]
    if not paths:
        raise DataError(f"{source}: no file has such a name: check the pattern")
    return read_files(source, paths)


def _check_all(rows: Rows) -> Rows:
    for index in range(len(rows)):
        rows.row(index)
    return rows


def _read_by(reader: str, data: DataConfig) -> Table:
    read = call_reader(reader, data.source, data.split)
    return Table(
        name=f"{data.source} ({data.split})",
        num_rows=len(read),
        fetch=read.__getitem__,
        location=lambda index: f"{data.source} ({data.split}) by {reader}, row {index}",
    )


def _read_quickstart(split: str) -> Table:
    name = split.partition("[")[0]
    if name not in QUICKSTART_FILES:
        raise DataError(f"the quickstart set: {no_such('split', name, QUICKSTART_FILES)}")
    path = Path(str(files("rayqd.data").joinpath("quickstart", QUICKSTART_FILES[name])))
    return read_file(path, str(path))
