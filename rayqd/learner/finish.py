"""After the last step: look at the student once more, write it out, and put the arms side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rayqd.config import Config
from rayqd.evals.fidelity import student_fidelity, teacher_fidelity
from rayqd.events import TEACHER, Arm, ArmKind, ArmResult, Fidelity
from rayqd.export.write import export, update_card, weight_bytes
from rayqd.learner.learner import Learner
from rayqd.model.student import Student
from rayqd.runs.paths import EXPORT
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
    learner: Learner, heldout: Heldout, untrained: Mapping[Arm, Fidelity], source: Path, config: Config
) -> list[ArmResult]:
    """Export the student; returns the rows of the result: the teacher, the `untrained` arms, and the distilled one.

    Of rank 0; where the weights are sharded, the others call `help_to_finish`.
    """
    directory = config.run_dir / EXPORT
    export(learner.student, source, config, directory)
    size = weight_bytes(directory)
    bits = learner.student.grid.bits_per_weight
    dense_bits = learner.student.head.element_size() * 8
    teacher = heldout.teacher(learner.teacher_head)
    student = Arm(kind=ArmKind.DISTILLED, format=config.quant.format)
    students = {**untrained, student: heldout.student(learner.student)}
    rows = [
        ArmResult(arm=TEACHER, fidelity=teacher, bits_per_weight=dense_bits, size_bytes=weight_bytes(source)),
        *(ArmResult(arm=a, fidelity=f, bits_per_weight=bits, size_bytes=size) for a, f in students.items()),
    ]
    update_card(directory, config, rows)
    return rows


def help_to_finish(learner: Learner, heldout: Heldout) -> None:
    """What `finish` needs of the other workers, in its order: their rows of the weights, and of the forward passes."""
    deque(learner.student.quantized_layers(), maxlen=0)
    heldout.student(learner.student)
