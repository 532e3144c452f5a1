"""The end of training: the student is exported and measured once more, beside the arms that it is compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rayqd.config import Config
from rayqd.evals.heldout import Heldout
from rayqd.events import TEACHER, Arm, ArmKind, ArmResult, Fidelity
from rayqd.export.logits import check_logits, compute_student_logits, short_row
from rayqd.export.write import dense_bits, export, update_card, weight_bytes
from rayqd.learner.initialization import LayerErrors
from rayqd.learner.learner import Learner
from rayqd.metrics.fidelity import TextFields
from rayqd.model.source import teacher_directories
from rayqd.model.student import Student
from rayqd.model.weight_bits import mean_bits
from rayqd.runs.paths import EXPORT
from rayqd.spans import span
from rayqd.types import IntArray


def finish(
    learner: Learner,
    heldout: Heldout,
    untrained: Mapping[Arm, Fidelity],
    source: Path,
    config: Config,
    of_teacher: TextFields | None = None,
    ending: str = "",
    layers: LayerErrors | None = None,
) -> tuple[ArmResult, ...]:
    """Export the student, with the tokenizer of `source`; return the teacher's row, the `untrained` arms', its own.

    `of_teacher` is the teacher's perplexity of `eval.text`, `ending` what the card says of the last step, `layers` the
    untrained arms' errors by layer.

    On rank 0; where the student is sharded, `finish_on_other_rank` runs on the others. Raises StorageError, and
    ModelError where the files compute another thing than the student.
    """
    directory = config.run_dir / EXPORT
    with span("export"):
        export(learner.student, source, config, directory)
        row = short_row(heldout.rollouts)
        logits = compute_student_logits(learner.student, row)
    errors = measure_layers(learner.student, layers, row)
    size = weight_bytes(directory)
    counted = learner.student.weight_bits
    bits, kinds = mean_bits(counted), {each.kind: each.bits_per_weight for each in counted}
    teachers = teacher_directories(config)
    with span("evaluate teacher"):
        teacher = heldout.evaluate_teacher(learner.teacher_heads)
        teacher = replace(teacher, **of_teacher) if of_teacher else teacher
    student = Arm(kind=ArmKind.DISTILLED, format=config.quant.format)
    with span(f"evaluate {student.name}"):
        students = {**untrained, student: heldout.evaluate(learner.student)}
    by_arm = {**(layers.by_arm if layers else {}), student: errors}
    with span("check the export"):  # after the last collective, so that no other worker waits for one that fails
        check_logits(directory, logits, row, config.model.dtype)
    rows = (
        ArmResult(
            arm=TEACHER, fidelity=teacher, bits_per_weight=dense_bits(*teachers), size_bytes=weight_bytes(*teachers)
        ),
        *(
            ArmResult(
                arm=a,
                fidelity=f,
                bits_per_weight=bits,
                size_bytes=size,
                bits_by_kind=kinds,
                layer_errors=by_arm.get(a),
            )
            for a, f in students.items()
        ),
    )
    update_card(directory, config, rows, ending=ending)
    return rows


def measure_layers(student: Student, layers: LayerErrors | None, row: IntArray) -> dict[str, float] | None:
    """Return the errors of the student's layers; None where nothing is known of the original's. Collective."""
    reference = layers.reference if layers else None
    if reference is None:
        compute_student_logits(student, row)  # another worker may need this one for it
        return None
    return reference.errors(student.model, lambda _, token_ids: compute_student_logits(student, token_ids))


def finish_on_other_rank(learner: Learner, heldout: Heldout) -> None:
    """Join the collectives of `finish`, in its order: all-gathers of the weights, then of the forward passes."""
    deque(learner.student.quantized_layers(), maxlen=0)
    row = short_row(heldout.rollouts)
    compute_student_logits(learner.student, row)
    measure_layers(learner.student, None, row)
    heldout.evaluate(learner.student)
