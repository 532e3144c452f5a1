"""After the last step: look at the student once more, write it out, and put the arms side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayqd.config import Config
from rayqd.evals.fidelity import Fidelity, student_fidelity, teacher_fidelity
from rayqd.learner.learner import Learner
from rayqd.model.export import export, weight_bytes
from rayqd.types import ScoredRollout


class Heldout:
    """The held-out rows, and how teacher and student do on them."""

    def __init__(self, learner: Learner, rows: Sequence[ScoredRollout], max_tokens: int) -> None:
        self._learner = learner
        self._rows = rows
        self._max_tokens = max_tokens

    def student(self) -> Fidelity:
        student = self._learner.student
        return student_fidelity(student.model, student.head, self._learner.teacher_head, self._rows, self._max_tokens)

    def teacher(self) -> Fidelity:
        return teacher_fidelity(self._learner.teacher_head, self._rows)


def finish(
    learner: Learner, heldout: Heldout, baseline: Fidelity, source: Path, config: Config
) -> list[dict[str, Any]]:
    """Export the student; returns the rows teacher, round-to-nearest and distilled of the result."""
    size = export(learner.student, source, config, config.run_dir / "export")
    bits = learner.student.grid.bits_per_weight
    dense_bits = learner.student.head.element_size() * 8
    return [
        _row("teacher", heldout.teacher(), dense_bits, weight_bytes(source)),
        _row("round-to-nearest INT4", baseline, bits, size),
        _row("distilled INT4", heldout.student(), bits, size),
    ]


def _row(arm: str, fidelity: Fidelity, bits_per_weight: float, size_bytes: int) -> dict[str, Any]:
    return {
        "arm": arm,
        "kl_to_teacher": fidelity.kl_to_teacher,
        "perplexity": fidelity.perplexity,
        "bits_per_weight": bits_per_weight,
        "size_bytes": size_bytes,
        "num_tokens": fidelity.num_tokens,
    }
