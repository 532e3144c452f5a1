"""After the last step: look at the student once more, write it out, and put the arms side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from rayqd.config import Config
from rayqd.evals.fidelity import Fidelity, student_fidelity, teacher_fidelity
from rayqd.export.write import export, update_card, weight_bytes
from rayqd.learner.learner import Learner
from rayqd.model.student import Student
from rayqd.types import ScoredRollout


class Heldout:
    """The held-out rows, and how students and teacher do on them."""

    def __init__(self, rows: Sequence[ScoredRollout], teacher_head: Tensor | None, max_tokens: int) -> None:
        self._rows = rows
        self._teacher_head = teacher_head  # None: the student's own
        self._max_tokens = max_tokens

    def student(self, student: Student) -> Fidelity:
        teacher_head = student.head if self._teacher_head is None else self._teacher_head
        with student.as_exported():
            return student_fidelity(student.model, student.head, teacher_head, self._rows, self._max_tokens)

    def teacher(self, teacher_head: Tensor) -> Fidelity:
        return teacher_fidelity(teacher_head, self._rows)


def finish(
    learner: Learner, heldout: Heldout, untrained: Mapping[str, Fidelity], source: Path, config: Config
) -> list[dict[str, Any]]:
    """Export the student; returns the rows of the result: the teacher, the `untrained` arms, and the distilled one.

    Of rank 0; where the weights are sharded, the others call `help_to_finish`.
    """
    directory = config.run_dir / "export"
    export(learner.student, source, config, directory)
    size = weight_bytes(directory)
    bits = learner.student.grid.bits_per_weight
    dense_bits = learner.student.head.element_size() * 8
    rows = [
        result_row("teacher", heldout.teacher(learner.teacher_head), dense_bits, weight_bytes(source)),
        *(result_row(arm, fidelity, bits, size) for arm, fidelity in untrained.items()),
        result_row(f"distilled {config.quant.format.upper()}", heldout.student(learner.student), bits, size),
    ]
    update_card(directory, config, rows)
    return rows


def help_to_finish(learner: Learner, heldout: Heldout) -> None:
    """What `finish` needs of the other workers, in its order: their rows of the weights, and of the forward passes."""
    deque(learner.student.quantized(), maxlen=0)
    heldout.student(learner.student)


def result_row(arm: str, fidelity: Fidelity, bits_per_weight: float, size_bytes: int) -> dict[str, Any]:
    return {"arm": arm, **asdict(fidelity), "bits_per_weight": bits_per_weight, "size_bytes": size_bytes}
