"""A process that is stopped as a whole is told from one that is slow, and from an observer who was away himself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
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


def test_a_process_is_itself_also_after_a_step_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "dump_stacks", lambda *_: True)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        began = pulse.start_of(process.pid)
        assert began > 0
        create_time = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda of: create_time(of) + 3600)
        another = Sign(node="a", pid=process.pid, began=began - 100, beats=1)  # of which it has the number
        assert pulse._end(another, "mine/learner-0") == "its process is gone"
        assert process.poll() is None
        own = Sign(node="a", pid=process.pid, began=began, beats=1)
        assert pulse._end(own, "mine/learner-0") == "its process hangs, its stacks are in Ray's logs"
        assert process.wait(10) == -signal.SIGKILL
    finally:
        process.kill()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_the_start_of_a_process_agrees_with_what_psutil_finds() -> None:
    assert pulse.start_of(os.getpid()) + psutil.boot_time() == pytest.approx(psutil.Process().create_time(), abs=2)


def test_nothing_more_is_expected_of_one_that_was_ended_but_of_its_successor(clock: Clock) -> None:
    silence = Silence()
    look(silence, clock, 1, sign(5))
    silence.disregard()
    assert [look(silence, clock, 1, sign(5)) for _ in range(3)] == [0, 0, 0]
    assert [look(silence, clock, 1, sign(1, pid=8)) for _ in range(3)] == [0, 1, 2]
