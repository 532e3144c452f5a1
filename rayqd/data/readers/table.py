"""Raw rows by position, each read when it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from rayqd.checksums import digest
from rayqd.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that nobody has looked at yet."""

    name: str  # for people: a path, or an id and a split
    num_rows: int
    fetch: Callable[[int], object]  # raises DataError, without a location, for one that cannot be read
    location: Callable[[int], str]  # "rows.jsonl:3", "some/set (train), row 17"
    remarks: tuple[str, ...] = ()  # how it was taken, where that may surprise
    identity: Callable[[], str] | None = None  # the digest of what it holds, now; none where nobody can tell
    fetch_many: Callable[[Sequence[int]], list[object]] | None = None  # where that is quicker; raises as `fetch` does

    def select(self, rows: Sequence[int]) -> Table:
        """Return the table of these rows, in this order; their locations stay."""
        fetch, location, identity, fetch_many = self.fetch, self.location, self.identity, self.fetch_many
        chosen = digest(np.asarray(rows, dtype=np.int64).tobytes())
        return replace(
            self,
            identity=None if identity is None else lambda: f"{identity()}[{chosen}]",
            fetch_many=None if fetch_many is None else lambda indices: fetch_many([rows[index] for index in indices]),
            num_rows=len(rows),
            fetch=lambda index: fetch(rows[index]),
            location=lambda index: location(rows[index]),
        )


def concatenate(name: str, tables: Sequence[Table]) -> Table:
    """Return the rows of all `tables` one after another."""
    if len(tables) == 1:
        return tables[0]
    ends = list(accumulate(table.num_rows for table in tables))

    def find(index: int) -> tuple[Table, int]:
        number = bisect_right(ends, index)
        return tables[number], index - (ends[number] - tables[number].num_rows)

    def fetch(index: int) -> object:
        table, row = find(index)
        return table.fetch(row)

    def location(index: int) -> str:
        table, row = find(index)
        return table.location(row)

    identities = [table.identity for table in tables]

    def identity() -> str:
        return " ".join(each() for each in identities if each is not None)

    return Table(
        name=name,
        num_rows=ends[-1] if ends else 0,
        fetch=fetch,
        location=location,
        remarks=tuple(dict.fromkeys(remark for table in tables for remark in table.remarks)),
        identity=None if None in identities else identity,
    )


def select_split(table: Table, split: str) -> Table:
    """Return the rows that a split expression takes of a file, which has one split whatever that is called.

    `train[:5%]`, `train[100:200]` and sums of them, as `datasets` reads them. Raises DataError where it cannot.
    """
    if "[" not in split:
        return table
    from datasets import ReadInstruction

    names = {part.partition("[")[0].strip() for part in split.split("+")}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(dict.fromkeys(names, table.num_rows))
    except (AssertionError, ValueError) as error:
        what = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f'{table.name}: the split "{split}" cannot be taken of its {table.num_rows:,} rows: {what}; '
            "write train[:5%] or train[100:200]"
        ) from error
    return table.select([row for part in parts for row in range(part.from_, part.to)])
