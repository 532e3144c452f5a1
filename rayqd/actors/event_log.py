"""The events of a run, in the order in which the controller was told of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from rayqd.actors.prometheus import MetricSeries
from rayqd.events import Event, TimedEvent


class EventLog:
    """Keeps every event until the driver has it, and its numbers in Ray's metrics."""

    def __init__(self, series: MetricSeries) -> None:
        self._series = series
        self._events: deque[TimedEvent] = deque()
        self._num_forgotten = 0  # that came before the first of them
        self._new_event = asyncio.Condition()

    async def add(self, event: Event) -> None:
        """Keep `event`, and wake those that wait for one."""
        self._series.record(event)
        async with self._new_event:
            self._events.append(TimedEvent(event=event, time=time.time()))
            self._new_event.notify_all()

    async def read(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        """Return the events from number `after` on, of which there is one reader; waits at most `timeout_seconds`.

        Those before are its own by now, and are forgotten: a run of years has more than memory holds.
        """
        async with self._new_event:
            while self._num_forgotten < after:
                self._events.popleft()
                self._num_forgotten += 1
            try:
                await asyncio.wait_for(self._new_event.wait_for(lambda: bool(self._events)), timeout_seconds)
            except TimeoutError:
                return []
            return list(self._events)
