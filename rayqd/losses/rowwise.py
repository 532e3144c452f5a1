"""Any per-token loss of logits, from hidden states and output heads, without ever holding [T, V] logits.

Shapes: T tokens, V vocabulary, d and D hidden widths of student and teacher, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rayqd.losses.gradient import attach_gradient
from rayqd.losses.output_head import Head, cap_logits, logits_of, scale_of, uncapped_logits, weight_of
from rayqd.losses.rows import chunk_size, slices
from rayqd.losses.shapes import check_sides

LossOfRows = Callable[[Tensor, slice], Tensor]  # logits [C, V] of the student, and which rows they are -> loss [C]
LossOfLogits = Callable[[Tensor, Tensor], Tensor]  # logits [C, V] of student and teacher -> loss [C]

_FLOAT32_COPIES = 4  # of a chunk's logits, that a loss and its gradient may hold at a time


def chunked_rowwise(
    student_hidden: Float[Tensor, "T d"],
    student_head: Head,
    loss_of_rows: LossOfRows,
    *,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """Return `loss_of_rows` of the logits, computed chunk by chunk: one float32 number a token.

    A head [V, d] is a tensor, with logits `hidden @ head.T`, or an `OutputHead`.

    Row t of the loss must depend on row t of the logits alone. The forward pass therefore computes d loss_t / d
    hidden_t with autograd while a chunk's logits exist, and the backward pass multiplies its rows by what comes from
    above. Differentiable once, with respect to `student_hidden` alone; the product runs in the dtype of hidden state
    and head. For the generalized Jensen-Shannon divergence `chunked_generalized_jsd` is faster.

    Raises ConfigError for a chunk_tokens below 1, and what `loss_of_rows` raises.
    """
    bytes_per_id = student_head.element_size() + 4 * _FLOAT32_COPIES
    chunk_tokens = chunk_size(chunk_tokens, len(student_head), bytes_per_id, student_head.device)
    with_gradient = torch.is_grad_enabled() and student_hidden.requires_grad
    with torch.no_grad():
        loss = torch.empty(len(student_hidden), dtype=torch.float32, device=student_hidden.device)
        slope = torch.empty_like(student_hidden) if with_gradient else None
        for rows in slices(len(student_hidden), chunk_tokens):
            logits = uncapped_logits(student_hidden[rows], student_head)
            if slope is None:
                loss[rows] = loss_of_rows(cap_logits(logits, student_head), rows)
            else:
                loss[rows], grad_logits = _loss_and_gradient(logits, student_head, rows, loss_of_rows)
                slope[rows] = grad_logits @ weight_of(student_head)
                if (scale := scale_of(student_head)) != 1.0:
                    slope[rows] *= scale
    return attach_gradient(loss, student_hidden, slope)


def _loss_and_gradient(logits: Tensor, head: Head, rows: slice, loss_of_rows: LossOfRows) -> tuple[Tensor, Tensor]:
    """Return the loss [C] of a chunk's uncapped logits, and d loss_t / d logits_t [C, V] by autograd."""
    with torch.enable_grad():
        loss = loss_of_rows(cap_logits(logits.requires_grad_(), head), rows)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def chunked_loss(
    student_hidden: Float[Tensor, "T d"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "T D"],
    teacher_head: Head,
    loss_of_logits: LossOfLogits,
    *,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """Return `loss_of_logits` of both sides' logits, chunk by chunk as `chunked_rowwise` does.

    Raises ModelError for shapes or dtypes that do not fit one another, ConfigError for a chunk_tokens below 1.
    """
    check_sides(student_hidden, student_head, teacher_hidden, teacher_head)
    teacher_hidden, teacher_head = teacher_hidden.detach(), teacher_head.detach()
    bytes_per_id = student_head.element_size() + teacher_head.element_size() + 4 * (_FLOAT32_COPIES + 1)
    chunk_tokens = chunk_size(chunk_tokens, len(student_head), bytes_per_id, student_head.device)

    def loss_of_rows(logits: Tensor, rows: slice) -> Tensor:
        return loss_of_logits(logits, logits_of(teacher_hidden[rows], teacher_head))

    return chunked_rowwise(student_hidden, student_head, loss_of_rows, chunk_tokens=chunk_tokens)
