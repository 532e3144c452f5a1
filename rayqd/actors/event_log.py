"""The events of a run, in the order in which the controller was told of them."""

from __future__ import annotations

import asyncio
import time

from rayqd.actors.prometheus import MetricSeries
from rayqd.events import Event, TimedEvent


class EventLog:
    """Keeps every event for the driver, and its numbers in Ray's metrics."""

    def __init__(self, series: MetricSeries) -> None:
        self._series = series
        self._events: list[TimedEvent] = []
        self._new_event = asyncio.Condition()

    async def add(self, event: Event) -> None:
        """Keep `event`, and wake those that wait for one."""
        self._series.record(event)
        async with self._new_event:
            self._events.append(TimedEvent(event=event, time=time.time()))
            self._new_event.notify_all()

    async def read(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        """Return the events from number `after` on; waits at most `timeout_seconds` for one."""
        async with self._new_event:
            try:
                await asyncio.wait_for(self._new_event.wait_for(lambda: len(self._events) > after), timeout_seconds)
            except TimeoutError:
                return []
            return self._events[after:]
