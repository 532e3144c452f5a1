"""The held-out rows of a run, on which its students and its teacher are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rayqd.data.example_set import RunningText
from rayqd.evals.fidelity import Heads, student_fidelity, teacher_fidelity
from rayqd.evals.text import text_perplexity, windows
from rayqd.events import Fidelity
from rayqd.losses.output_head import Head, as_heads
from rayqd.metrics.fidelity import TextFields
from rayqd.model.student import Student
from rayqd.types import Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Heldout:
    """Held-out rows with the teacher's hidden states."""

    def __init__(
        self,
        rows: Sequence[ScoredRollout],
        teacher_heads: Head | Sequence[Head | None] | None,
        max_tokens: int,
        text: RunningText | None = None,
    ) -> None:
        """Take the teacher's output head, [V, d]; None means the student's own. Of several teachers theirs, by number.

        `max_tokens` run at a time.
        `text`: what is measured beside the rows.
        """
        self._windows = windows(text.token_ids, text.window, text.stride) if text else []
        self._rows = rows
        self._teacher_heads = as_heads(teacher_heads)
        self._max_tokens = max_tokens

    @property
    def rollouts(self) -> list[Rollout]:
        """Return the rows without the teacher's states."""
        return [row.rollout for row in self._rows]

    def evaluate(self, student: Student) -> Fidelity:
        """Measure `student` with the weights of its export; collective where it is sharded."""
        teacher_heads = [student.head if head is None else head for head in self._teacher_heads]
        with student.as_exported():
            return self.evaluate_model(student.model, student.head, teacher_heads)

    def evaluate_model(self, model: PreTrainedModel, head: Head, teacher_heads: Heads) -> Fidelity:
        """Measure a model, with its output head [V, d], as it computes."""
        found = student_fidelity(model, head, teacher_heads, self._rows, self._max_tokens)
        return self.with_text(found, model, head)

    def evaluate_teacher(self, teacher_heads: Heads) -> Fidelity:
        """Measure the teacher itself, of several each on its rows: no distance, and its own perplexity."""
        return teacher_fidelity(teacher_heads, self._rows)

    def with_text(self, found: Fidelity, model: PreTrainedModel, head: Head) -> Fidelity:
        """Return what was `found` of `model`, with its output head [V, d], with its perplexity of the text, if any."""
        return replace(found, **self.measure_text(model, head)) if self.has_text else found

    @property
    def has_text(self) -> bool:
        """Return whether there is a text beside the rows."""
        return bool(self._windows)

    def measure_text(self, model: PreTrainedModel, head: Head) -> TextFields:
        """Return the fields of a Fidelity that say how `model` does on the text."""
        perplexity, number = text_perplexity(model, head, self._windows, self._max_tokens)
        return {"text_perplexity": perplexity, "num_text_tokens": number}
