"""`metrics.jsonl` as others than the run itself read it, also while it is being written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pydantic import JsonValue

from rayqd.events import RecordedEvent, from_json
from rayqd.runs.lines import parse_lines
from rayqd.runs.paths import METRICS


def read_metrics(run_dir: Path) -> list[dict[str, JsonValue]]:
    """Return the rows of `metrics.jsonl`, oldest first; none where there is no such file."""
    return _Tail(run_dir).new_rows()


def read_events(run_dir: Path) -> list[RecordedEvent]:
    """Return the same as events, which versions and other programs cannot spell differently."""
    return MetricsTail(run_dir).new_events()


def read_timed_events(run_dir: Path) -> list[tuple[float, RecordedEvent]]:
    """Return the events, each behind when it was, in seconds since the epoch; 0 where that is not told."""
    return [(_time(row), event) for row in read_metrics(run_dir) for event in _event(row)]


class MetricsTail:
    """What `metrics.jsonl` got since the last look."""

    def __init__(self, run_dir: Path) -> None:
        self._tail = _Tail(run_dir)

    def new_events(self) -> list[RecordedEvent]:
        """Return the events whose line is complete. What is no event is passed over."""
        return [event for row in self._tail.new_rows() for event in _event(row)]

    @property
    def num_damaged(self) -> int:
        """Return how many of the lines seen so far are not what was written."""
        return self._tail.num_damaged


class _Tail:
    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / METRICS
        self._inode = 0
        self._offset = 0
        self._num_seen = 0
        self.num_damaged = 0

    def new_rows(self) -> list[dict[str, JsonValue]]:
        """Return the objects whose line is complete; a damaged one is passed over, and counted."""
        try:
            stream = self._file.open("rb")
        except FileNotFoundError:
            return []
        num_known = 0
        with stream:
            inode = os.fstat(stream.fileno()).st_ino
            if inode != self._inode:  # a resumed run writes a new file, which begins with the rows that it keeps
                self._inode, self._offset, num_known = inode, 0, self._num_seen
            stream.seek(self._offset)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        rows, num_damaged = parse_lines(whole)
        self.num_damaged += num_damaged
        self._num_seen = len(rows) if self._offset == len(whole) + len(newline) else self._num_seen + len(rows)
        return rows[num_known:]


def _time(row: dict[str, JsonValue]) -> float:
    time = row.get("time")
    return float(time) if isinstance(time, int | float) else 0.0


def _event(row: dict[str, JsonValue]) -> list[RecordedEvent]:
    with contextlib.suppress(ValueError):
        return [from_json(row)]
    return []
