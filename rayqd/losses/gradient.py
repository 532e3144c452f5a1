"""Losses that know their own gradient: it is computed with the value, and the backward pass only scales it.

Shapes: T tokens, V vocabulary, R rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayqd.losses.closed_form import scale_logits
from rayqd.losses.rows import row_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadGradient:
    """The gradient of an output head, which needs the tokens' weights and so is computed in the backward pass."""

    head: Tensor
    compute: Callable[..., Tensor]  # of `saved` and grad_loss [T]
    saved: tuple[Tensor, ...]


def attach_gradient(
    loss: Tensor, inputs: Tensor, slope: Tensor | None, *, factor: float = 1.0, head: HeadGradient | None = None
) -> Tensor:
    """Return `loss` [T] as a function of `inputs` [T, ...] with d loss_t / d inputs_t = slope_t · factor.

    Row t of the loss must depend on row t of the inputs alone. Differentiable once. Without `slope`, which needs no
    gradient of its own, and without `head` it is `loss` itself.
    """
    if slope is None and head is None:
        return loss
    weight, compute, saved = (head.head, head.compute, head.saved) if head else (None, None, ())
    return _RowGradient.apply(inputs, weight, loss, slope, factor, compute, *saved)  # type: ignore[no-any-return]


class _RowGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        inputs, _, loss, slope, ctx.factor, ctx.head_gradient, *saved = args
        ctx.save_for_backward(slope, *saved)
        ctx.dtype = inputs.dtype
        return loss.clone()

    @staticmethod
    @once_differentiable  # untyped, and so seems to rename ctx
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_loss,), (slope, *saved) = grad_outputs, ctx.saved_tensors
        grad_inputs = grad_head = None
        if slope is not None:
            weights = (grad_loss * ctx.factor).view(-1, *[1] * (slope.dim() - 1))
            grad_inputs = (slope * weights).to(ctx.dtype)
        if ctx.head_gradient is not None:
            grad_head = ctx.head_gradient(*saved, grad_loss)
        return grad_inputs, grad_head, None, None, None, None, *[None] * len(saved)


class LossAndSlope(Protocol):
    """Loss [R] and, when asked for, its slope [R, V]: the gradient but for a constant factor.

    Logits of both sides are float32, divided by the temperature, with 0 as each row's largest; they may be overwritten.
    """

    def __call__(self, student: Tensor, teacher: Tensor, *, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        """Return both of the rows, whose logits are [R, V]."""
        ...


def loss_of_logits(
    student: Tensor, teacher: Tensor, temperature: float, loss_and_slope: LossAndSlope, *, factor: float
) -> Tensor:
    """Return the loss [T] of logits [T, V] in float32, block by block; `factor` makes the slope the gradient."""
    with_slope = torch.is_grad_enabled() and student.requires_grad
    with torch.no_grad():
        loss = torch.empty(len(student), dtype=torch.float32, device=student.device)
        slope = torch.empty_like(student, dtype=torch.float32) if with_slope else None
        for rows in row_blocks(len(student), student.shape[1], student.device):
            sides = scale_logits(student[rows], temperature), scale_logits(teacher[rows], temperature)
            loss[rows], block = loss_and_slope(*sides, with_slope=with_slope)
            if slope is not None and block is not None:
                slope[rows] = block
    return attach_gradient(loss, student, slope, factor=factor)
