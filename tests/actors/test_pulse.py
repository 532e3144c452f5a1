"""A process that is stopped as a whole is told from one that is slow, and from an observer who was away himself."""

from __future__ import annotations

import time

import pytest

from rayqd.actors import pulse
from rayqd.actors.pulse import Sign, Silence


class Clock:
    """The observer's own, which the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pulse.time, "monotonic", clock)
    return clock


def sign(beats: int, pid: int = 7) -> Sign:
    return Sign(node="a", pid=pid, began=3.0, beats=beats)


def look(silence: Silence, clock: Clock, seconds: float, last: Sign | None) -> float:
    clock.now += seconds
    return silence.look(last)


def test_silence_counts_from_the_last_new_sign(clock: Clock) -> None:
    silence = Silence()
    assert [look(silence, clock, 1, sign(beats)) for beats in (1, 2, 2, 2, 3, 3)] == [0, 0, 1, 2, 0, 1]


def test_one_that_gives_signs_to_nobody_is_not_silent(clock: Clock) -> None:
    silence = Silence()
    assert [look(silence, clock, 1, None) for _ in range(3)] == [0, 0, 0]


def test_time_in_which_nobody_looked_does_not_count(clock: Clock) -> None:
    """The observer was stopped, its machine asleep, or there was no work: the other may have been alive meanwhile."""
    silence = Silence()
    look(silence, clock, 1, sign(1))
    assert look(silence, clock, 3600, sign(1)) == pulse._MOST_BETWEEN_LOOKS


def test_a_clock_that_jumps_changes_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    silence = Silence()
    look(silence, clock, 1, sign(1))
    monkeypatch.setattr(time, "time", lambda: 4e9)  # the year 2096
    assert look(silence, clock, 1, sign(1)) == 1


def test_nothing_more_is_expected_of_one_that_was_ended_but_of_its_successor(clock: Clock) -> None:
    silence = Silence()
    look(silence, clock, 1, sign(5))
    silence.disregard()
    assert [look(silence, clock, 1, sign(5)) for _ in range(3)] == [0, 0, 0]
    assert [look(silence, clock, 1, sign(1, pid=8)) for _ in range(3)] == [0, 1, 2]
