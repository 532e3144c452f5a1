"""Learner and controller that stand still: what they leave behind, and what the driver reads of it."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil

from rayqd.actors.topology import stall_file
from rayqd.config import Config
from rayqd.stall import StallWatch, read_stall


def watch_learner(config: Config, rank: int) -> StallWatch:
    """Return what ends this process, worker `rank` of the learner, where it stands still."""
    file = stall_file(f"{config.name}/learner-{rank}")
    file.unlink(missing_ok=True)  # of an earlier run of this name
    return StallWatch(file, config.ray.stall_seconds)


def explain_stall(config: Config) -> str | None:
    """Return why a learner worker of the run ended itself; None where none did, or on another node."""
    for rank in range(config.learner.num_workers):
        if where := read_stall(stall_file(f"{config.name}/learner-{rank}")):
            return (
                f"learner-{rank} ended no microbatch for ray.stall_seconds={config.ray.stall_seconds:g}, at {where}: "
                "the stacks are in Ray's logs; the same command goes on from the last checkpoint, with a higher "
                "ray.stall_seconds where a microbatch may take that long"
            )
    return None


def dump_stacks(pid: int | None) -> None:
    """Have an actor's process on this node write its threads' stacks to its log, if it said that it would."""
    with contextlib.suppress(psutil.Error, OSError):
        if pid is not None and psutil.Process(pid).name().startswith("ray::"):
            os.kill(pid, signal.SIGUSR1)
