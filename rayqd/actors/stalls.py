"""Learner and controller that stand still: what they leave behind, and what the driver reads of it."""

from __future__ import annotations

import os
import time

from rayqd.actors.pulse import Sign, Silence, end_silent, read_sign
from rayqd.actors.topology import stall_file
from rayqd.config import Config
from rayqd.stall import StallWatch, read_stall

_LOOK_SECONDS = 1.0


def watch_learner(config: Config, rank: int) -> StallWatch:
    """Return what ends this process, worker `rank` of the learner, where it stands still."""
    file = stall_file(learner_label(config, rank))
    if file.exists():  # of the process before this one, or of an earlier run of this name
        file.replace(file.with_suffix(f".{os.getpid()}.txt"))
    return StallWatch(file, config.ray.stall_seconds)


def explain_stall(config: Config) -> str | None:
    """Return why a learner worker of the run ended itself; None where none did, or on another node. Tells it once."""
    for rank in range(config.learner.num_workers):
        file = stall_file(learner_label(config, rank))
        if where := read_stall(file):
            file.replace(file.with_suffix(".told.txt"))
            return (
                f"learner-{rank} ended no microbatch for ray.stall_seconds={config.ray.stall_seconds:g}, at {where}: "
                "the stacks are in Ray's logs"
            )
    return None


def learner_label(config: Config, rank: int) -> str:
    """Return what a worker of the learner is called in what it leaves: `mine/learner-0`."""
    return f"{config.name}/learner-{rank}"


class LearnerPulse:
    """Looks for signs of life of the learner's workers, whatever has become of Ray Train's controller over them."""

    def __init__(self, config: Config) -> None:
        self._names = [learner_label(config, rank) for rank in range(config.learner.num_workers)]
        self._seconds = config.ray.stall_seconds
        self._silences = {name: Silence() for name in self._names}
        self._looked = 0.0
        for name, silence in self._silences.items():  # on a cluster, of a driver before this one: those are gone
            silence.look(read_sign(name))
        self.forget()

    def find_silent(self) -> str | None:
        """End a worker that gave no sign for `ray.stall_seconds`, and say so; None where there is none."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return None
        self._looked = time.monotonic()
        for name, silence in self._silences.items():
            sign = read_sign(name)
            if silence.look(sign) >= self._seconds and sign is not None:
                silence.disregard()
                return self._end(sign, name)
        return None

    def is_silent(self, seconds: float) -> bool:
        """Return whether a worker gave no sign for `seconds`, while somebody looked; it is left as it is."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return any(silence.look(read_sign(name)) >= seconds for name, silence in self._silences.items())

    def forget(self) -> None:
        """Expect nothing more of the workers that there were: new ones give signs under the same names."""
        for silence in self._silences.values():
            silence.disregard()

    def _end(self, sign: Sign, name: str) -> str:
        who, state = name.rpartition("/")[2], end_silent(sign, name)
        return f"{who} gave no sign of life for ray.stall_seconds={self._seconds:g}: {state}"
