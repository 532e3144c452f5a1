"""The generalized Jensen-Shannon divergence from hidden states and output heads, without ever holding [T, V] logits.

Shapes: T tokens, V vocabulary, d and D hidden widths of student and teacher, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayqd.losses.closed_form import loss_and_slope, slope_factor
from rayqd.losses.divergence import check_parameters
from rayqd.losses.rows import chunk_size, row_blocks, slices
from rayqd.losses.shapes import check_sides


def chunked_generalized_jsd(
    student_hidden: Float[Tensor, "T d"],
    student_head: Float[Tensor, "V d"],
    teacher_hidden: Float[Tensor, "T D"],
    teacher_head: Float[Tensor, "V D"],
    *,
    beta: float,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """`generalized_jsd` of the logits `hidden @ head.T`: per token, nats, float32, exact over the full vocabulary.

    The products run in the dtype of hidden state and head, and are rounded to it; all that follows is float32. In
    bfloat16 that rounding alone is worth about 1e-3 nats where logits reach 16 to 32; float32 inputs do without it.

    Row t of the result depends on row t of `student_hidden` alone, so the forward pass computes d loss_t / d hidden_t
    in closed form (see `closed_form`), chunk by chunk, and the backward pass only multiplies its rows by what comes
    from above: three products in all, two when no gradient is wanted. Differentiable once, with respect to
    `student_hidden`. `student_head` gets a gradient if it requires one; that needs the tokens' weights, so the backward
    pass goes over the chunks a second time (three more products). The teacher never gets one.

    Holds `chunk_tokens` rows of both sides' logits at a time; the default stays below 256 MiB on a CPU, 1 GiB on a GPU.

    Raises ConfigError for beta, temperature or chunk_tokens out of range; ModelError for shapes or dtypes that do not
    fit one another.
    """
    check_parameters(beta, temperature)
    check_sides(student_hidden, student_head, teacher_hidden, teacher_head)
    size = student_head.element_size() + teacher_head.element_size()
    chunk_tokens = chunk_size(chunk_tokens, len(student_head), size, student_head.device, len(student_hidden))
    with_gradient = torch.is_grad_enabled() and (student_hidden.requires_grad or student_head.requires_grad)
    sides = _Sides(student_hidden, student_head, teacher_hidden.detach(), teacher_head.detach())
    return _ChunkedJSD.apply(*sides, _Objective(beta, temperature, chunk_tokens), with_gradient)  # type: ignore[no-any-return]


class _Sides(NamedTuple):
    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor


class _Objective(NamedTuple):
    beta: float
    temperature: float
    chunk_tokens: int


class _Chunk(NamedTuple):
    """Valid until the next chunk, which reuses its slope's memory."""

    rows: slice
    loss: Tensor  # [C] float32
    slope: Tensor  # [C, V] in the student's dtype; meaningless unless asked for
    factor: Tensor  # [C, 1] float32: d loss / d logits = slope * factor


class _ChunkedJSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        sides, objective, with_gradient = _Sides(*args[:4]), args[4], args[5]
        hidden, head = sides.student_hidden, sides.student_head
        wants_hidden = with_gradient and ctx.needs_input_grad[0]
        wants_head = with_gradient and ctx.needs_input_grad[1]
        loss = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad_rows = torch.empty_like(hidden) if wants_hidden else None
        for chunk in _chunks(sides, objective, with_slope=wants_hidden):
            loss[chunk.rows] = chunk.loss
            if grad_rows is not None:
                torch.mm(chunk.slope, head, out=grad_rows[chunk.rows]).mul_(chunk.factor)
        ctx.objective = objective
        ctx.save_for_backward(grad_rows, *(sides if wants_head else ()))
        return loss

    @staticmethod
    @once_differentiable  # untyped, and so seems to rename ctx
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad_loss,) = grad_outputs
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
        grad_rows, sides = saved[0], saved[1:]
        grad_hidden = grad_head = None
        if grad_rows is not None:
            grad_hidden = (grad_rows * grad_loss[:, None]).to(grad_rows.dtype)
        if sides:
            grad_head = _head_gradient(_Sides(*cast("tuple[Tensor, ...]", sides)), ctx.objective, grad_loss)
        return grad_hidden, grad_head, None, None, None, None


def _head_gradient(sides: _Sides, objective: _Objective, grad_loss: Tensor) -> Tensor:
    """sum_t grad_loss_t (d loss_t / d logits_t) hidden_t^T, [V, d]; added up in float32 over the chunks."""
    total = torch.zeros_like(sides.student_head, dtype=torch.float32)
    for chunk in _chunks(sides, objective, with_slope=True):
        weighted = sides.student_hidden[chunk.rows] * (grad_loss[chunk.rows, None] * chunk.factor)
        total += chunk.slope.t() @ weighted.to(chunk.slope.dtype)
    return total.to(sides.student_head.dtype)


def _chunks(sides: _Sides, objective: _Objective, *, with_slope: bool) -> Iterator[_Chunk]:
    """Loss and slope of one chunk after another, in the same two buffers; slopes take the student logits' place."""
    num_tokens, vocab_size = len(sides.student_hidden), len(sides.student_head)
    size = min(objective.chunk_tokens, num_tokens)
    student_buffer = sides.student_hidden.new_empty(size, vocab_size)
    teacher_buffer = sides.teacher_hidden.new_empty(size, vocab_size)
    for rows in slices(num_tokens, objective.chunk_tokens):
        num_rows = rows.stop - rows.start
        student, teacher = student_buffer[:num_rows], teacher_buffer[:num_rows]
        torch.mm(sides.student_hidden[rows], sides.student_head.t(), out=student)
        torch.mm(sides.teacher_hidden[rows], sides.teacher_head.t(), out=teacher)
        loss, factor = loss_and_slope_in_place(
            student, teacher, objective.beta, objective.temperature, with_slope=with_slope
        )
        yield _Chunk(rows, loss, student, factor)


def loss_and_slope_in_place(
    student: Tensor, teacher: Tensor, beta: float, temperature: float, *, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """Loss [C], and the factor [C, 1] of the slope, which takes the place of the student's logits. Uses up both sides.

    A GPU has a kernel for it, `rows_triton`. Without Triton it takes the CPU's way, block by block.
    """
    if student.is_cuda and _has_triton():
        from rayqd.losses import rows_triton

        return rows_triton.loss_and_slope_in_place(student, teacher, beta, temperature, with_slope=with_slope)
    loss = torch.empty(len(student), dtype=torch.float32, device=student.device)
    factor = torch.full_like(loss, slope_factor(beta, temperature))[:, None]
    blocks = list(row_blocks(len(student), student.shape[1], student.device))
    # Taken once: a block's memory goes back to the system at each end of its use, and is cleared before the next.
    most_rows = max((rows.stop - rows.start for rows in blocks), default=0)
    buffers = student.new_empty(4, most_rows, student.shape[1], dtype=torch.float32)
    for rows in blocks:
        s, t, p, q = buffers[:, : rows.stop - rows.start]
        _divide(student[rows], temperature, out=s)
        _divide(teacher[rows], temperature, out=t)
        loss[rows], slope = loss_and_slope(s, t, beta, with_slope=with_slope, scratch=(p, q))
        if slope is not None:
            _store(slope, student[rows], factor[rows])
    return loss, factor


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _divide(logits: Tensor, temperature: float, out: Tensor) -> None:
    """Logits divided by the temperature, in float32."""
    out.copy_(logits)
    if temperature != 1.0:
        out.div_(temperature)


def _store(slope: Tensor, out: Tensor, factor: Tensor) -> None:
    """Rounds a slope to the dtype of `out`; in float16 each row is scaled first, or its small entries would be lost."""
    if out.dtype == torch.float16:
        peak = slope.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        slope.div_(peak)
        factor.mul_(peak)
    out.copy_(slope)
