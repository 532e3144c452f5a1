"""What a driver takes for a sign of its own learner: not that of an earlier one, which a cluster's store still has."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayqd.actors import pulse, stalls
from rayqd.actors.pulse import Sign
from rayqd.actors.stalls import LearnerPulse
from rayqd.config import Config


class Store:
    """Ray's store of signs, and the observer's clock."""

    sign: Sign | None = None
    now = 1000.0

    def __init__(self) -> None:
        self.ended: list[int] = []

    def end(self, sign: Sign, _: str) -> str:
        self.ended.append(sign.pid)
        return "its process is gone"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(pulse.time, "monotonic", lambda: store.now)
    monkeypatch.setattr(stalls, "read_sign", lambda _: store.sign)
    monkeypatch.setattr(stalls, "end_silent", store.end)
    return store


def sign(pid: int, beats: int) -> Sign:
    return Sign(node="a", pid=pid, began=3.0, beats=beats)


def look(pulse_of_learner: LearnerPulse, store: Store, seconds: int) -> list[str]:
    said: list[str] = []
    for _ in range(seconds // 2):
        store.now += 2
        if line := pulse_of_learner.find_silent():
            said.append(line)
    return said


def make(tmp_path: Path) -> Config:
    return Config(runs_dir=tmp_path, name="mine", model={"name": "smollm2-135m"}, ray={"stall_seconds": 60})


def test_the_last_sign_of_an_earlier_driver_is_no_silence(store: Store, tmp_path: Path) -> None:
    store.sign = sign(7, 500)
    observed = LearnerPulse(make(tmp_path))
    assert look(observed, store, 600) == []  # while a node starts
    store.sign = sign(8, 1)
    (said,) = look(observed, store, 70)
    assert said == "learner-0 gave no sign of life for ray.stall_seconds=60: its process is gone"
    assert store.ended == [8]


def test_a_learner_that_falls_silent_is_ended_once(store: Store, tmp_path: Path) -> None:
    observed = LearnerPulse(make(tmp_path))
    store.sign = sign(8, 1)
    assert len(look(observed, store, 300)) == 1
    assert store.ended == [8]
