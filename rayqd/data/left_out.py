"""The rows of a source that are not used, by reason, with the first few of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MAX_FIRST = 3


class Reason(StrEnum):
    """Why a row is not used, as it is shown."""

    TOO_LONG = "too long"
    BROKEN = "broken"
    FILTERED = "left out by data.filter"
    HELD_OUT = "also held out"
    UNTRAINED = "of weight 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutRow:
    """One row, where it stands and what is the matter with it."""

    location: str  # "rows.jsonl:3", "some/set (train), row 17"
    words: str  # "the prompt has 99 tokens, ..."

    def __str__(self) -> str:
        return f"{self.location}: {self.words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What was left out for one reason."""

    reason: Reason
    num_rows: int
    first: tuple[LeftOutRow, ...]  # the first few that were met, at most MAX_FIRST

    def __str__(self) -> str:
        """Format `3 too long`; with the first row where somebody should mend it: `1 broken (first: a.jsonl:3: ...)`."""
        first = f" (first: {self.first[0]})" if self.reason is Reason.BROKEN and self.first else ""
        return f"{self.num_rows:,} {self.reason}{first}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a row gives no example."""

    reason: Reason
    words: str
    has_key: bool = False  # whether the row is a conversation at least


class Tally:
    """Counts rows as they are met; one that is met twice counts once. A byte a row and reason is all that it takes."""

    def __init__(self) -> None:
        self._met: dict[Reason, bytearray] = {reason: bytearray() for reason in Reason}
        self._counts: dict[Reason, int] = dict.fromkeys(Reason, 0)
        self._first: dict[Reason, list[LeftOutRow]] = {reason: [] for reason in Reason}

    def add(self, reason: Reason, index: int, locate: Callable[[int], str], words: str) -> None:
        """Count the row at `index`; `locate` says where that stands."""
        if self.has(reason, index):
            return
        met = self._met[reason]
        met.extend(bytes(max(0, index + 1 - len(met))))
        met[index] = 1
        self._counts[reason] += 1
        if len(self._first[reason]) < MAX_FIRST:
            self._first[reason].append(LeftOutRow(location=locate(index), words=words))

    def has(self, reason: Reason, index: int) -> bool:
        """Return whether the row at `index` was counted for `reason`."""
        met = self._met[reason]
        return index < len(met) and bool(met[index])

    def count(self, reason: Reason) -> int:
        """Return how many rows were counted for `reason`."""
        return self._counts[reason]

    def summary(self) -> tuple[LeftOut, ...]:
        """Return the reasons that any row was counted for, with those rows."""
        return tuple(
            LeftOut(reason=reason, num_rows=count, first=tuple(self._first[reason]))
            for reason, count in self._counts.items()
            if count
        )
