"""The user's own reader and filter of rows, named by import path in `data.reader` and `data.filter`.

    reader(source, split) -> iterable of rows, each a dict that `conversation.py` takes
    filter(row) -> bool, of the row as it was read: whether it stays

What they raise, and what they return instead, is one line that names setting and row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np

from rayqd.config.sections import DataConfig
from rayqd.errors import ConfigError, DataError, RayqdError
from rayqd.extensions import check_signature, load_extension

READER, FILTER = "data.reader", "data.filter"
_KEPT, _LEFT_OUT = 1, 2


def check_user_code(data: DataConfig) -> None:
    """Raise ConfigError if the reader or the filter cannot be imported, or be called as it would be."""
    if data.reader is not None:
        _load(data.reader, READER, "source", "split")
    if data.filter is not None:
        _load(data.filter, FILTER, "row")


def call_reader(reader: str, source: str, split: str) -> list[object]:
    """Return all rows that `reader` yields. Raises ConfigError where one is no dict, DataError where it fails."""
    read = _load(reader, READER, "source", "split")
    said = f"{READER}={reader}"
    rows: list[object] = []
    try:
        for row in _iterate(read(source, split), said):
            if not isinstance(row, dict):
                raise ConfigError(f"{said}: row {len(rows)} is of type {type(row).__name__}: it must be a dict")
            rows.append(cast(object, row))
    except RayqdError:
        raise
    except Exception as error:  # somebody else's code may raise anything
        raise DataError(f"{said} fails after {len(rows)} rows: {_one_line(error)}") from error
    return rows


class RowFilter:
    """`data.filter`: called once for every row that is looked at."""

    def __init__(self, path: str) -> None:
        """Import it. Raises ConfigError."""
        self._said = f"{FILTER}={path}"
        self._keep = _load(path, FILTER, "row")
        self._answers = bytearray()  # by row: 0 before it is asked

    def keeps(self, index: int, row: object, location: str) -> bool:
        """Return whether the row at `index` stays. Raises ConfigError where the filter fails or returns no bool."""
        self._answers.extend(bytes(max(0, index + 1 - len(self._answers))))
        if not self._answers[index]:
            self._answers[index] = _KEPT if self._call(row, location) else _LEFT_OUT
        return self._answers[index] == _KEPT

    def _call(self, row: object, location: str) -> bool:
        try:
            kept = self._keep(row)
        except Exception as error:  # somebody else's code may raise anything
            raise ConfigError(f"{self._said} fails at {location}: {_one_line(error)}") from error
        if not isinstance(kept, bool | np.bool_):
            raise ConfigError(f"{self._said}: returns {type(kept).__name__} for {location}: it must be True or False")
        return bool(kept)


def _load(path: str, setting: str, *arguments: str) -> Callable[..., Any]:
    extension = load_extension(path, setting)
    check_signature(extension, path, setting, arguments)
    return extension


def _iterate(rows: object, said: str) -> Iterator[object]:
    if not isinstance(rows, Iterable):
        raise ConfigError(f"{said}: returns {type(rows).__name__}: it must yield rows, or return a list of them")
    yield from cast(Iterable[object], rows)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
