"""The controller keeps an event until the driver has it, and no longer."""

from __future__ import annotations

from typing import Any

from rayqd.actors.event_log import EventLog
from rayqd.actors.pooled import RoleClock
from rayqd.events import StatusEvent


class NoSeries:
    def record(self, event: Any) -> None: ...


def log() -> EventLog:
    series: Any = NoSeries()
    return EventLog(series)


async def test_each_event_is_read_once_in_order_and_then_forgotten() -> None:
    events = log()
    read: list[str] = []
    for round_ in range(4):
        for place in range(round_):  # none, one, two, three at a time
            await events.add(StatusEvent(text=f"{round_}.{place}"))
        read += [
            timed.event.text for timed in await events.read(len(read), 0.01) if isinstance(timed.event, StatusEvent)
        ]
    assert read == ["1.0", "2.0", "2.1", "3.0", "3.1", "3.2"]
    assert await events.read(len(read), 0.01) == []
    assert len(events._events) == 0


async def test_what_the_driver_did_not_get_is_read_again() -> None:
    events = log()
    await events.add(StatusEvent(text="once"))
    assert [timed.event for timed in await events.read(0, 1.0)] == [StatusEvent(text="once")]
    assert [timed.event for timed in await events.read(0, 1.0)] == [StatusEvent(text="once")]


def test_a_step_that_is_done_stays_in_the_total_alone() -> None:
    clock = RoleClock()
    clock.add(0, 1.5, 10)
    clock.add(1, 2.0, 20)
    clock.forget(0)
    assert (clock.total_seconds, clock.seconds, clock.tokens) == (3.5, {1: 2.0}, {1: 20})
