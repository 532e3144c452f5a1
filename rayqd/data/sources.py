"""The rows of a data set: of a file, of one on the hub, of the set that ships with rayqd, or of a reader of the user's.

A row that is no conversation (`conversation.py` says what one is) is an error that names its location, or is skipped
and counted.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Literal

from rayqd.config.data_source import QUICKSTART, path_of_source
from rayqd.config.sections import DataConfig
from rayqd.data.conversation import Message, Parse, UntrainedError, row_parser
from rayqd.data.left_out import LeftOut, Reason, Tally
from rayqd.data.user_code import RowFilter, call_reader
from rayqd.errors import DataError

QUICKSTART_FILES = {"train": "train.jsonl", "test": "heldout.jsonl"}

OnBadRow = Literal["auto", "error", "skip"]


class Rows:
    """Conversations by position, each read and checked when it is asked for."""

    def __init__(
        self,
        name: str,
        length: int,
        fetch: Callable[[int], object],
        location: Callable[[int], str],
        on_bad_row: OnBadRow,
        parse: Parse,
        keep: RowFilter | None = None,
    ) -> None:
        self.name = name
        self._length = length
        self._fetch = fetch
        self._location = location
        self._on_bad_row = on_bad_row
        self._parse = parse
        self._keep = keep
        self._tally = Tally()

    def __len__(self) -> int:
        return self._length

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The rows met so far that are not used, by reason."""
        return self._tally.summary()

    def num_left_out(self, reason: Reason) -> int:
        """Count the rows met so far that are not used for `reason`; one met twice counts once."""
        return self._tally.count(reason)

    def row(self, index: int) -> list[Message] | None:
        """Return the conversation at `index`; None if it is filtered out, or broken and those are skipped.

        Raises DataError for a broken row that is not skipped.
        """
        if self._tally.has(Reason.BROKEN, index):
            return None
        try:
            row = self._fetch(index)
            if self._keep and isinstance(row, dict) and not self._keep.keeps(index, row, self._location(index)):
                self.leave_out(index, Reason.FILTERED, "data.filter returned False")
                return None
            return self._parse(row)
        except UntrainedError as error:
            self.leave_out(index, Reason.UNTRAINED, str(error))
            return None
        except DataError as error:
            self.reject(index, str(error))
            return None

    def reject(self, index: int, what: str) -> None:
        """Count the row at `index` as broken, or raise DataError with its location and what to do."""
        if self._on_bad_row != "skip":
            raise DataError(f'{self._location(index)}: {what}; fix it or set data.on_bad_row = "skip"')
        self.leave_out(index, Reason.BROKEN, what)

    def leave_out(self, index: int, reason: Reason, what: str) -> None:
        """Count the row at `index` as not used for `reason`; `what` says in words what is the matter with it."""
        self._tally.add(reason, index, self._location(index), what)


def read_rows(data: DataConfig, *, parse: Parse | None = None) -> Rows:
    """Open what `data` names: by its reader if it has one, else "quickstart", a .jsonl file, or a data set on the hub.

    What a reader gives, and a file, is checked to its end before this returns, a hub set row by row as it is read;
    `split` means nothing to a file. With `on_bad_row` auto a broken row is an error, but skipped in a hub set, which
    its user cannot mend. Raises DataError for a source that is missing or cannot be reached, and for a broken row
    unless those are skipped; ConfigError for a reader or a filter that cannot be called or returns something else.
    """
    parse = parse or row_parser(data)
    keep = RowFilter(data.filter) if data.filter is not None else None
    if data.reader is not None:
        return _check_all(_read_by(data.reader, data, parse, keep))
    if data.source == QUICKSTART:
        return _check_all(_read_jsonl(_quickstart_path(data.split), data.on_bad_row, parse, keep))
    path = path_of_source(data.source)
    if path is not None:
        return _check_all(_read_jsonl(path, data.on_bad_row, parse, keep))
    return _read_hub(data, parse, keep)


def _check_all(rows: Rows) -> Rows:
    for index in range(len(rows)):
        rows.row(index)
    return rows


def _read_by(reader: str, data: DataConfig, parse: Parse, keep: RowFilter | None) -> Rows:
    read = call_reader(reader, data.source, data.split)
    return Rows(
        name=f"{data.source} ({data.split})",
        length=len(read),
        fetch=read.__getitem__,
        location=lambda index: f"{data.source} ({data.split}) by {reader}, row {index}",
        on_bad_row=data.on_bad_row,
        parse=parse,
        keep=keep,
    )


def _quickstart_path(split: str) -> Path:
    if split not in QUICKSTART_FILES:
        raise DataError(f'the quickstart set has the splits {" and ".join(QUICKSTART_FILES)}, got "{split}"')
    return Path(str(files("rayqd.data").joinpath("quickstart", QUICKSTART_FILES[split])))


def _read_jsonl(path: Path, on_bad_row: OnBadRow, parse: Parse, keep: RowFilter | None) -> Rows:
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror}; check its path") from error
    # Lines end at b"\n" alone: str.splitlines would also cut at U+2028 and others, which JSON allows inside text.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    return Rows(
        name=str(path),
        length=len(lines),
        fetch=lambda index: _parse_json(lines[index][1]),
        location=lambda index: f"{path}:{lines[index][0]}",
        on_bad_row=on_bad_row,
        parse=parse,
        keep=keep,
    )


def _parse_json(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"the line is not one JSON object ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # numbers of over 4300 digits, brackets nested thousands deep
        raise DataError(f"the line is JSON that cannot be read ({error})") from error


def _read_hub(data: DataConfig, parse: Parse, keep: RowFilter | None) -> Rows:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    source, split = data.source, data.split
    try:
        dataset = load_dataset(source, split=split)
    except ConnectionError as error:
        raise DataError(
            f'cannot reach the hub for the data set "{source}"; connect this machine, give a .jsonl file '
            'as data.source or eval.source, or use "quickstart"'
        ) from error
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        raise DataError(
            f'cannot load the data set "{source}", split "{split}": {reason}; '
            "give the id of a data set and one of its splits, or the path of a .jsonl file"
        ) from error
    return Rows(
        name=f"{source} ({split})",
        length=len(dataset),
        fetch=lambda index: dataset[index],
        location=lambda index: f"{source} ({split}), row {index}",
        on_bad_row="skip" if data.on_bad_row == "auto" else data.on_bad_row,
        parse=parse,
        keep=keep,
    )
