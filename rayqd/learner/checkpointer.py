"""Saves the learner between two of its steps, whatever it is computing when it is asked to.

    batch, forward, backward │ new weights, publish, save │ batch, forward, backward │ new weights ...
        a stop may save      │         a stop waits       │       a stop may save    │

What a checkpoint holds changes only while the optimizer steps, so a stop need not wait for a whole step, which may take
longer than whoever stops a job is ready to wait. Workers that have a share of the student each hold back the same step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from rayqd.export.digest import digests
from rayqd.learner.checkpoint import DIGESTS, Checkpoints
from rayqd.learner.distributed import States
from rayqd.learner.learner import Learner

_PATIENCE_SECONDS = 0.1


class Keeper:
    """Of a learner that has done `num_steps` steps."""

    def __init__(self, learner: Learner, checkpoints: Checkpoints, num_steps: int) -> None:
        self._learner = learner
        self._checkpoints = checkpoints
        self._num_steps = num_steps
        self._changing = threading.Lock()
        learner.optimizer.register_step_pre_hook(self._begin_to_change)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around computing step `number`, counted from 1, and whatever else must see the weights that it made."""
        yield
        self._num_steps = number
        self._changing.release()

    def save(self, step: int) -> Path | None:
        """Keep a checkpoint of the learner as it is after `step`; all who take part call it, the first writes."""
        student = self._learner.student
        state = self._learner.workers.whole(self._learner.state_dict())
        return self._write(step, state, digests(student))

    def stop(self) -> int:
        """From any thread: keep the last step that was done, and let no further one change the weights.

        Every worker that takes part does. Returns the step's number. Raises StorageError when it could not be written.
        """
        workers = self._learner.workers
        self._hold_back()
        is_kept = not self._num_steps or self._num_steps in self._checkpoints.steps()
        if not workers.all_aside(is_kept)[0]:  # only the first worker's directory is sure to have them all
            state = workers.whole(self._learner.state_dict(), aside=True)
            self._write(self._num_steps, state, digests(self._learner.student, workers.whole_aside))
        return self._num_steps

    def _hold_back(self) -> None:
        """The next change, for good: on every worker the one of the same step, which any of them may have begun."""
        while True:
            held = self._changing.acquire(timeout=_PATIENCE_SECONDS)
            seen = self._learner.workers.all_aside(self._num_steps if held else None)
            if held and set(seen) == {self._num_steps}:
                return
            if held:
                self._changing.release()
                time.sleep(_PATIENCE_SECONDS)  # for the step that another worker is in

    def _write(self, step: int, state: States, fingerprints: dict[str, Tensor]) -> Path | None:
        if not self._learner.workers.is_first:
            return None
        return self._checkpoints.save(step, state | {DIGESTS: fingerprints})

    def _begin_to_change(self, *_: object) -> None:
        self._changing.acquire()
