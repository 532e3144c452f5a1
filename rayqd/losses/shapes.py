"""Refusals shared by the losses: shapes and dtypes that do not fit one another."""

from __future__ import annotations

from torch import Tensor

from rayqd.errors import ModelError
from rayqd.losses.output_head import Head


def check_logits(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise ModelError unless both are [tokens, vocabulary] of one shape."""
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ModelError(
            f"student_logits {list(student_logits.shape)} and teacher_logits {list(teacher_logits.shape)} must both be "
            "[tokens, vocabulary]; if one vocabulary is padded, cut both to the tokenizer's size"
        )


def check_sides(student_hidden: Tensor, student_head: Head, teacher_hidden: Tensor, teacher_head: Head) -> None:
    """Raise ModelError unless states and head have a product on each side, of one shape on both."""
    for side, hidden, head in (("student", student_hidden, student_head), ("teacher", teacher_hidden, teacher_head)):
        if hidden.dim() != 2 or len(head.shape) != 2 or hidden.shape[1] != head.shape[1]:
            raise ModelError(
                f"{side}_hidden {list(hidden.shape)} and {side}_head {list(head.shape)} must be [tokens, width] and "
                "[vocabulary, width] of one width"
            )
        if hidden.dtype != head.dtype:
            raise ModelError(
                f"{side}_hidden is {hidden.dtype} and {side}_head {head.dtype}; cast one to the other's dtype"
            )
    if len(student_hidden) != len(teacher_hidden) or len(student_head) != len(teacher_head):
        raise ModelError(
            f"student has {len(student_hidden)} tokens and {len(student_head)} ids, teacher {len(teacher_hidden)} and "
            f"{len(teacher_head)}; they must be equal: cut padded heads to the tokenizer's size"
        )
