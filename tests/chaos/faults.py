"""What is done to a run from outside, and what became of it."""

from __future__ import annotations

import math
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.disturbed_run import DisturbedRun


class Deadline:
    """When whatever is done to runs has to end, which can be brought forward."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._at = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._at

    def left(self, most: float) -> float:
        """Return the seconds until then, `most` at most."""
        return max(0.0, min(most, self._at - time.monotonic()))

    def pull(self) -> None:
        """Make it now."""
        self._at = time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What was done to a run, and what became of it."""

    kind: str  # "kill", "stop", "damage"; "end": the run gave up by itself, some steps after the fault before
    role: str
    step: int  # the last one before
    seconds: float | None  # the longest without a step until it was over; None where it was never
    by_itself: bool  # nobody had to give the command again
    began: float = 0.0  # seconds since the epoch


def disturb(
    run: DisturbedRun,
    kind: str,
    role: str,
    draw: random.Random,
    *,
    num_steps: int = 1,
    deadline: Deadline | None = None,
) -> Fault | None:
    """Do it, and wait until `num_steps` more are done; None where there is no such process, or no time.

    What is not over by the `deadline` has not been seen to its end, and does not count.
    """
    deadline = deadline or Deadline()
    run.wait(
        lambda: bool(run.processes(role)), deadline.left(run.patience_seconds)
    )  # one that was killed before may not be back
    files = checkpoint_files(run) if kind == "damage" else []
    found = run.processes(role)
    if not found or (kind == "damage" and not files):
        return None
    victim = draw.choice(found)
    if files:
        flip(draw.choice(files), draw)
    step, began = run.step, time.time()
    try:
        victim.send_signal(signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
    except psutil.Error:  # it went by itself just now
        return None
    by_itself = role != "driver"
    if not by_itself:
        run.wait_for_end()
        run.start()
    until = min(step + num_steps, run.config.learner.steps)
    seconds = run.wait_for_steps(until, began, deadline.left(run.patience_seconds))
    if seconds is None and not run.runs and not run.is_done:  # it gave up
        by_itself = False
        run.start()
        seconds = run.wait_for_steps(until, began, deadline.left(run.patience_seconds))
    if seconds is None and deadline.is_over:
        return None
    return Fault(kind=kind, role=role, step=step, seconds=seconds, by_itself=by_itself, began=began)


def checkpoint_files(run: DisturbedRun) -> list[Path]:
    """The files of the newest checkpoint; none without one."""
    newest = max((run.config.run_dir / "checkpoints").glob("step-??????"), default=None)
    return sorted(newest.iterdir()) if newest else []


def flip(file: Path, draw: random.Random) -> None:
    """Flip one bit of it."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
