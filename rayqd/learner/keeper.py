"""Saves the learner between two of its steps, whatever it is computing when it is asked to.

    batch, forward, backward │ new weights, publish, save │ batch, forward, backward │ new weights ...
        a stop may save      │         a stop waits       │       a stop may save    │

What a checkpoint holds changes only while the optimizer steps, so a stop need not wait for a whole step, which may take
longer than whoever stops a job is ready to wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rayqd.export.digest import digests
from rayqd.learner.checkpoint import DIGESTS, Checkpoints
from rayqd.learner.learner import Learner


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

    def save(self, step: int) -> Path:
        """Keep a checkpoint of the learner as it is after `step`."""
        return self._checkpoints.save(step, self._learner.state_dict() | {DIGESTS: digests(self._learner.student)})

    def stop(self) -> int:
        """From any thread: keep the last step that was done, and let no further one change the weights.

        Returns the step's number. Raises StorageError when it could not be written.
        """
        self._changing.acquire()  # for good
        if self._num_steps and self._num_steps not in self._checkpoints.steps():
            self.save(self._num_steps)
        return self._num_steps

    def _begin_to_change(self, *_: object) -> None:
        self._changing.acquire()
