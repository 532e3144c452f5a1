"""The held-out rows of a run, on which its students and its teacher are measured."""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.evals.fidelity import student_fidelity, teacher_fidelity
from rayqd.events import Fidelity
from rayqd.losses.output_head import Head
from rayqd.model.student import Student
from rayqd.types import Rollout, ScoredRollout


class Heldout:
    """Held-out rows with the teacher's hidden states."""

    def __init__(self, rows: Sequence[ScoredRollout], teacher_head: Head | None, max_tokens: int) -> None:
        """Take the teacher's output head, [V, d]; None means the student's own. `max_tokens` run at a time."""
        self._rows = rows
        self._teacher_head = teacher_head
        self._max_tokens = max_tokens

    @property
    def rollouts(self) -> list[Rollout]:
        """Return the rows without the teacher's states."""
        return [row.rollout for row in self._rows]

    def evaluate(self, student: Student) -> Fidelity:
        """Measure `student` with the weights of its export; collective where it is sharded."""
        teacher_head = student.head if self._teacher_head is None else self._teacher_head
        with student.as_exported():
            return student_fidelity(student.model, student.head, teacher_head, self._rows, self._max_tokens)

    def evaluate_teacher(self, teacher_head: Head) -> Fidelity:
        """Measure the teacher itself: no distance, and its own perplexity."""
        return teacher_fidelity(teacher_head, self._rows)
