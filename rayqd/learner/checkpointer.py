"""Saves the learner between two of its steps, whatever it is computing when it is asked to.

    batch, forward, backward │ new weights, publish, save │ batch, forward, backward │ new weights ...
        a stop may save      │         a stop waits       │       a stop may save    │

What a checkpoint holds changes only while the optimizer steps, so a stop need not wait for a whole step, which may take
longer than whoever stops a job is ready to wait. Workers that hold shards of the student all hold back the same step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rayqd.errors import RunError
from rayqd.export.digest import digest_layers
from rayqd.learner.audit_trail import AuditTrail
from rayqd.learner.checkpoint import DIGESTS, Checkpoints, load_checkpoint
from rayqd.learner.evaluations import Evaluations
from rayqd.learner.learner import Learner, do_nothing
from rayqd.metrics.fidelity import Fidelity
from rayqd.runs.paths import AUDIT, EVALUATIONS

STUDENT = "student"  # the set of tensors that is trained

_POLL_SECONDS = 0.1
_EMPTY = torch.empty(0)


class Checkpointer:
    """Writes the checkpoints of a learner, and has it go on from the newest."""

    def __init__(self, learner: Learner, checkpoints: Checkpoints, evaluations: Evaluations) -> None:
        self._learner = learner
        self._checkpoints = checkpoints
        self.evaluations = evaluations
        self.trail = AuditTrail()  # of the steps that are done, this process's and those of the checkpoint
        self._num_steps = 0  # done
        self.remarks: list[str] = []  # for the user, of what was resumed
        self._weights_lock = threading.Lock()  # held from the update of the weights to the end of `step`
        learner.before_update = self._lock_weights

    def resume(self) -> int:
        """Load the newest checkpoint, if there is one; return the number of steps done."""
        self._num_steps = max(self._checkpoints.steps(), default=0)
        if self._num_steps:
            state = load_checkpoint(self._checkpoints.path(self._num_steps))
            self._check_shapes(state[STUDENT])
            self._learner.load_state_dict(state)
            self.trail.load(self._checkpoints.path(self._num_steps))
            self.evaluations.load(self._checkpoints.path(self._num_steps))
            self.remarks += filter(None, [self._compare(state[DIGESTS])])
        if self._learner.group.is_rank0:
            self.remarks += filter(None, [self._find_best()])
        return self._num_steps

    @contextmanager
    def step(self, number: int) -> Generator[None]:
        """Enclose step `number`, counted from 1, and whatever else must see the weights that it made."""
        yield
        self._num_steps = number
        self._weights_lock.release()

    def save_between_steps(self) -> Path | None:
        """Write a checkpoint where no step is being done; collective, and rank 0 writes."""
        self._lock_weights()
        try:
            return self.save(self._num_steps)
        finally:
            self._weights_lock.release()

    def save(self, step: int) -> Path | None:
        """Write a checkpoint of the learner as it is after `step`; collective, and rank 0 writes."""
        state = self._learner.group.gather_full(self._learner.state_dict())
        return self._write(step, state, digest_layers(self._learner.student))

    @property
    def num_steps(self) -> int:
        """Return the number of steps done."""
        return self._num_steps

    def lacks_evaluation(self) -> bool:
        """Return, to every worker the same, whether a decision waits for what the weights as they are now come to."""
        return self._agree(self.evaluations.lack(self._num_steps))

    def is_to_end(self) -> bool:
        """Return, to every worker the same, whether the evaluations say that training should end."""
        return self._agree(self.evaluations.reason_to_end is not None)

    def add_evaluation(self, fidelity: Fidelity | None) -> None:
        """Take what the weights as they are now came to, and keep them where they are the best so far; collective.

        `fidelity`: None on workers that have not measured. A checkpoint that `stop` writes meanwhile has neither the
        value nor the weights, or both.
        """
        self._lock_weights()
        try:
            is_best = fidelity is not None and self.evaluations.would_be_best(fidelity)
            if self._agree(is_best and self.evaluations.keep_best) and self._learner.group.joins_collectives:
                self._save_best()
            if fidelity is not None:
                self.evaluations.add(self._num_steps, fidelity)
        finally:
            self._weights_lock.release()

    def _save_best(self) -> None:
        group = self._learner.group
        state = group.gather_full({STUDENT: self._learner.student.state_dict()})
        fingerprints = digest_layers(self._learner.student)
        if group.is_rank0:
            self._checkpoints.save_best(self._num_steps, {**state, DIGESTS: fingerprints})

    def load_best(self) -> int:
        """Let the student have the best weights, if those are kept; return the step that its weights are of.

        Of all workers that join collectives.
        """
        best = self.evaluations.best if self.evaluations.keep_best else None
        step = self._learner.group.from_rank0(best.step if best else self._num_steps)
        if step != self._num_steps:
            self._learner.student.load_state_dict(self._read_best(step))
        return step

    def stop(self, on_held: Callable[[], None] = do_nothing) -> int:
        """Save the last step that was done, from any thread, and let no further one change the weights.

        Every worker that joins collectives does; `on_held` is called when the weights can change no more. Returns the
        step's number. Raises StorageError when it could not be written.
        """
        group = self._learner.group
        self._hold_back()
        on_held()
        is_saved = not self._num_steps or self._num_steps in self._checkpoints.steps()
        if not group.all_gather_object(is_saved)[0]:  # only rank 0's directory is sure to have them all
            state = group.gather_full(self._learner.state_dict(), on_side_group=True)
            self._write(self._num_steps, state, digest_layers(self._learner.student, group.gather_on_side_group))
        self._checkpoints.flush()
        return self._num_steps

    def go_on(self) -> None:
        """Let the learner change its weights again after `stop`."""
        self._weights_lock.release()

    def _check_shapes(self, saved: Mapping[str, Tensor]) -> None:
        """Raise RunError where the checkpoint's weights are those of another student."""
        own = self._learner.student.state_dict()
        for name in sorted({*own, *saved}):
            here, there = (list(state[name].shape) if name in state else None for state in (own, saved))
            is_shard = self._learner.group.mesh is not None and here is not None
            if here != there and not (is_shard and there is not None):
                raise RunError(
                    f"checkpoint {self._checkpoints.path(self._num_steps)} is of another model: {name} has the shape "
                    f"{there or 'of nothing'} there and {here or 'of nothing'} here; remove the run's checkpoints and "
                    "start, or give this run another name"
                )

    def _compare(self, recorded: Mapping[str, Tensor]) -> str | None:
        """Compare the weights with the digests of those that were saved; collective where they are sharded."""
        group = self._learner.group
        if not group.joins_collectives:
            return None
        now = digest_layers(self._learner.student)
        differing = sorted(name for name in now if not torch.equal(now[name], recorded[name]))
        if not differing:
            return None
        return (
            f"{len(differing)} of {len(now)} layers round to other values here than where the checkpoint was made "
            f"({differing[0]} first): another device, version or starting point; training goes on from these"
        )

    def _find_best(self) -> str | None:
        """Forget best weights of later steps; return a line for the user where those that count are not there."""
        self._checkpoints.forget_best_after(self.evaluations.last_step)
        best = self.evaluations.best if self.evaluations.keep_best else None
        if best is None or best.step in self._checkpoints.best_steps():
            return None
        self.evaluations.forget()
        self._checkpoints.forget_best_after(0)
        return f"{self._checkpoints.best_path(best.step)} is not there: which weights are the best is found out anew"

    def _read_best(self, step: int) -> dict[str, Tensor]:
        """Return the best weights, full tensors, which rank 0 reads from its disk."""
        group = self._learner.group
        state = load_checkpoint(self._checkpoints.best_path(step))[STUDENT] if group.is_rank0 else {}
        return {name: group.from_rank0(state.get(name, _EMPTY)) for name in group.from_rank0([*state])}

    def _agree(self, flag: bool) -> bool:
        """Return what rank 0 says, where any decision is made by evaluations; False elsewhere, and nobody is asked."""
        if not self.evaluations.decide:
            return False
        group = self._learner.group
        return group.all_reduce_max(flag and group.is_rank0) == 1

    def _hold_back(self) -> None:
        """Keep the lock for good, on every worker before the same step, which any of them may have begun."""
        while True:
            is_locked = self._weights_lock.acquire(timeout=_POLL_SECONDS)
            steps = self._learner.group.all_gather_object(self._num_steps if is_locked else None)
            if is_locked and set(steps) == {self._num_steps}:
                return
            if is_locked:
                self._weights_lock.release()
                time.sleep(_POLL_SECONDS)  # for the step that another worker is in

    def _write(self, step: int, state: Mapping[str, dict[str, Tensor]], fingerprints: dict[str, Tensor]) -> Path | None:
        if not self._learner.group.is_rank0:
            return None
        self.trail.add_weights(step, state[STUDENT])
        texts = {AUDIT: self.trail.to_text(), EVALUATIONS: self.evaluations.to_text()}
        return self._checkpoints.save(step, {**state, DIGESTS: fingerprints}, texts)

    def _lock_weights(self) -> None:
        self._weights_lock.acquire()
