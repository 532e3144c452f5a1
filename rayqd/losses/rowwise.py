"""Any per-token loss of the student's logits, from hidden states and output head, without ever holding [T, V] logits.

Shapes: T tokens, V vocabulary, d hidden width, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayqd.losses.rows import chunk_size, slices

LossOfRows = Callable[[Tensor, slice], Tensor]  # logits [C, V] of the student, and which rows they are -> loss [C]

_FLOAT32_COPIES = 4  # of a chunk's logits, that a loss and its gradient may hold at a time


def chunked_rowwise(
    student_hidden: Float[Tensor, "T d"],
    student_head: Float[Tensor, "V d"],
    loss_of_rows: LossOfRows,
    *,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """`loss_of_rows(hidden @ head.T)`, chunk by chunk: one float32 number a token.

    Row t of the loss must depend on row t of the logits alone. The forward pass therefore computes d loss_t / d
    hidden_t with autograd while a chunk's logits exist, and the backward pass multiplies its rows by what comes from
    above. Differentiable once, with respect to `student_hidden` alone; the product runs in the dtype of hidden state
    and head. For the exact divergence `chunked_generalized_jsd` is faster.

    Raises ConfigError for a chunk_tokens below 1, and what `loss_of_rows` raises.
    """
    bytes_per_id = student_head.element_size() + 4 * _FLOAT32_COPIES
    chunk_tokens = chunk_size(chunk_tokens, len(student_head), bytes_per_id, student_head.device)
    with_gradient = torch.is_grad_enabled() and student_hidden.requires_grad
    return _ChunkedRowwise.apply(student_hidden, student_head.detach(), loss_of_rows, chunk_tokens, with_gradient)  # type: ignore[no-any-return]


class _ChunkedRowwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        loss_of_rows: LossOfRows,
        chunk_tokens: int,
        with_gradient: bool,
    ) -> Tensor:
        loss = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad_rows = torch.empty_like(hidden) if with_gradient else None
        for rows in slices(len(hidden), chunk_tokens):
            logits = (hidden[rows] @ head.t()).requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient):
                chunk = loss_of_rows(logits, rows)
                if grad_rows is not None:
                    (slope,) = torch.autograd.grad(chunk.sum(), logits)
                    grad_rows[rows] = slope @ head
            loss[rows] = chunk.detach()
        if grad_rows is not None:
            ctx.save_for_backward(grad_rows)
        return loss

    @staticmethod
    @once_differentiable  # untyped, and so seems to rename ctx
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_rows,), (grad_loss,) = ctx.saved_tensors, grad_outputs
        return (grad_rows * grad_loss[:, None]).to(grad_rows.dtype), None, None, None, None
