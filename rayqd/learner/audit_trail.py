"""What the newest steps trained on, kept in every checkpoint: they are told of again where the driver was lost too.

The driver writes a step's line to `audit.jsonl` a moment after the step. Where everything ends in that moment, a
checkpoint would otherwise hold steps that nobody can account for.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import xxhash
from torch import Tensor

from rayqd.audit import AuditEvent, StepAudit, from_row
from rayqd.learner.learner import Learner
from rayqd.model.wire import to_wire
from rayqd.runs.paths import AUDIT

MAX_BYTES_EACH_STEP = 1 << 26  # of trained weights; of larger ones there is a digest at every checkpoint alone
_LENGTH = 1024  # steps; the driver is never so far behind


class AuditTrail:
    """The records of the newest steps, oldest first."""

    def __init__(self) -> None:
        self._steps: deque[StepAudit] = deque(maxlen=_LENGTH)

    def add(self, audit: StepAudit) -> None:
        """Add a step that was done."""
        self._steps.append(audit)

    def add_weights(self, step: int, student: Mapping[str, Tensor]) -> None:
        """Complete the record of `step`, if it is the newest, with the digest of the trained weights after it."""
        if self._steps and self._steps[-1].step == step and self._steps[-1].weights is None:
            self._steps.append(replace(self._steps.pop(), weights=digest_weights(student)))

    @property
    def newest(self) -> AuditEvent | None:
        """Return the last step; None before there is one."""
        return AuditEvent(steps=(self._steps[-1],)) if self._steps else None

    @property
    def max_staleness(self) -> int | None:
        """Return what rollout.max_staleness=auto had come to at the last step; None where it had to nothing."""
        return self._steps[-1].max_staleness if self._steps else None

    @property
    def all(self) -> AuditEvent:
        """Return every step that is kept."""
        return AuditEvent(steps=tuple(self._steps))

    def to_text(self) -> str:
        """Return the steps as JSON Lines."""
        return "".join(json.dumps(asdict(audit)) + "\n" for audit in self._steps)

    def load(self, checkpoint: Path) -> None:
        """Take over what a checkpoint has; nothing of one that an earlier version wrote."""
        self._steps.clear()
        self._steps.extend(_read(checkpoint / AUDIT))


def digest_weights(student: Mapping[str, Tensor]) -> str:
    """Return 64 bits of XXH3 of all tensors' names and bytes, in hexadecimal, in the order of their names."""
    hasher = xxhash.xxh3_64()
    for name, tensor in sorted(student.items()):
        hasher.update(name.encode())
        hasher.update(to_wire(tensor.detach()).bits.data)
    return hasher.hexdigest()


def digest_after_step(learner: Learner) -> str | None:
    """Return the digest of the trained weights where that costs next to nothing, else None; of rank 0 alone."""
    if learner.group.is_sharded or not learner.group.is_rank0:
        return None
    student = learner.student.state_dict()
    small = sum(tensor.nbytes for tensor in student.values()) <= MAX_BYTES_EACH_STEP
    return digest_weights(student) if small else None


def _read(file: Path) -> Iterator[StepAudit]:
    if file.is_file():  # whole, as the checkpoint is
        for line in file.read_text(encoding="utf-8").splitlines():
            yield from_row(json.loads(line))
