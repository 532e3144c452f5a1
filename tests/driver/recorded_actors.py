"""A run's processes for the monitor, of which only the events are left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rayqd.events import Event, TimedEvent


class RecordedActors:
    """A run's processes, of which only the events are left; `interrupt_at` is when the user presses Ctrl-C."""

    def __init__(self, events: Sequence[Event], interrupt_at: int | None = None) -> None:
        self._events = [TimedEvent(event=event, time=100.0 + i) for i, event in enumerate(events)]
        self._interrupt_at = interrupt_at
        self.began = time.monotonic() - 100  # before the driver checked model and rows, and had them followed
        self.stop_requested = False
        self.engines_started_at: int | None = None  # the number of events that were seen by then
        self._num_seen = 0

    def start_engines(self) -> None:
        if self.engines_started_at is None:
            self.engines_started_at = self._num_seen

    def events(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        self._num_seen = after
        if after == self._interrupt_at and not self.stop_requested:
            raise KeyboardInterrupt
        return self._events[after : after + 3 if self._interrupt_at is None else after + 1]

    def stop(self) -> None:
        self.stop_requested = True

    def collect_ready(self) -> dict[str, float]:
        return {}

    def list_unplaced(self) -> list[str]:
        return []

    list_starting = list_awaited_workers = list_unplaced

    def role_seconds(self) -> dict[str, float]:
        return {"rollout": 1.25, "teacher": 0.0}


class NoReport:
    def write(self) -> None: ...
