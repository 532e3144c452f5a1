"""How often a run may be started again from its last checkpoint, while nobody looks."""

from __future__ import annotations

from collections import Counter

from rayqd.errors import DeathError, HangError, WorkerError


class Restarts:
    """Counts deaths; those of learner and controller in a row, with no new step between, are limited."""

    def __init__(self, max_in_a_row: int) -> None:
        self.deaths: Counter[str] = Counter()  # that were survived, by worker: "rollout-0", "learner"
        self._max_in_a_row = max_in_a_row
        self._in_a_row = 0
        self._has_hung = False
        self._step = -1  # the furthest of any life before

    def count(self, worker: str) -> None:
        """Count the death of a rollout worker or teacher, which its pool starts again."""
        self.deaths[worker] += 1

    def allow(self, death: DeathError, step: int) -> None:
        """Count a death after `step` steps; raises WorkerError, with what the process said last, at one too many.

        Of a HangError the second is one too many, whatever was done between.
        """
        if isinstance(death, HangError):
            if self._has_hung:
                raise WorkerError(
                    f"{death}, and it did so before it was started again; the same command goes on from the last "
                    "checkpoint, with a higher ray.stall_seconds where a microbatch may take that long"
                )
            self._has_hung = True
        self._in_a_row = self._in_a_row + 1 if step <= self._step else 1
        self._step = max(step, self._step)
        if self._in_a_row > self._max_in_a_row:
            again = f", {self._in_a_row} times with no new step between" if self._in_a_row > 1 else ""
            notes = getattr(death, "__notes__", [])
            said = f"; its last words: {' / '.join(notes)}" if notes else ""
            raise WorkerError(f"{death}{again}{said}; the same command goes on from the last checkpoint")
        self.deaths["controller" if "controller" in str(death).split()[:2] else "learner"] += 1
