"""The generalized Jensen-Shannon divergence from hidden states and output heads, without ever holding [T, V] logits.

Shapes: T tokens, V vocabulary, d and D hidden widths of student and teacher, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rayqd.losses.closed_form import loss_and_slope, slope_factor
from rayqd.losses.divergence import check_parameters
from rayqd.losses.gradient import HeadGradient, attach_gradient
from rayqd.losses.output_head import Head, scale_of, weight_of, write_logits
from rayqd.losses.rows import chunk_size, row_blocks, slices
from rayqd.losses.shapes import check_sides


def chunked_generalized_jsd(
    student_hidden: Float[Tensor, "T d"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "T D"],
    teacher_head: Head,
    *,
    beta: float,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """Return `generalized_jsd` of both sides' logits: per token, nats, float32, over the full vocabulary.

    A head [V, d] is a tensor, with logits `hidden @ head.T`, or an `OutputHead`.

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
    sides = _Sides(student_hidden, student_head, teacher_hidden.detach(), teacher_head.detach())
    objective = _Objective(beta, temperature, chunk_tokens)
    with_slope = torch.is_grad_enabled() and student_hidden.requires_grad
    loss, slope = _loss_and_hidden_gradient(sides, objective, with_slope=with_slope)
    head, weight = None, weight_of(student_head)
    if torch.is_grad_enabled() and weight.requires_grad:
        saved = student_hidden, weight, sides.teacher_hidden, weight_of(sides.teacher_head)
        head = HeadGradient(head=weight, compute=partial(_head_gradient, objective, sides), saved=saved)
    return attach_gradient(loss, student_hidden, slope, head=head)


class _Sides(NamedTuple):
    student_hidden: Tensor
    student_head: Head
    teacher_hidden: Tensor
    teacher_head: Head


class _Objective(NamedTuple):
    beta: float
    temperature: float
    chunk_tokens: int


class _Chunk(NamedTuple):
    """Valid until the next chunk, which reuses its slope's memory."""

    rows: slice
    loss: Tensor  # [C] float32
    slope: Tensor  # [C, V] in the student's dtype; meaningless unless asked for
    factor: Tensor  # [C, 1] float32: d loss / d (product of hidden state and head's weight) = slope * factor


@torch.no_grad()
def _loss_and_hidden_gradient(
    sides: _Sides, objective: _Objective, *, with_slope: bool
) -> tuple[Float[Tensor, " T"], Float[Tensor, "T d"] | None]:
    """Return the loss, and d loss_t / d hidden_t of each token when asked for."""
    hidden = sides.student_hidden
    loss = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    gradient = torch.empty_like(hidden) if with_slope else None
    for chunk in _chunks(sides, objective, with_slope=with_slope):
        loss[chunk.rows] = chunk.loss
        if gradient is not None:
            torch.mm(chunk.slope, weight_of(sides.student_head), out=gradient[chunk.rows]).mul_(chunk.factor)
    return loss, gradient


def _head_gradient(objective: _Objective, sides: _Sides, *tensors: Tensor) -> Float[Tensor, "V d"]:
    """Add up sum_t grad_loss_t (d loss_t / d logits_t) hidden_t^T in float32 over the chunks.

    `tensors` are those of `sides`, as they were saved for the backward pass, and grad_loss.
    """
    grad_loss = tensors[4]
    total = torch.zeros_like(tensors[1], dtype=torch.float32)
    for chunk in _chunks(sides, objective, with_slope=True):
        weighted = sides.student_hidden[chunk.rows] * (grad_loss[chunk.rows, None] * chunk.factor)
        total += chunk.slope.t() @ weighted.to(chunk.slope.dtype)
    return total.to(tensors[1].dtype)


def _chunks(sides: _Sides, objective: _Objective, *, with_slope: bool) -> Iterator[_Chunk]:
    """Yield loss and slope chunk by chunk, in the same two buffers; slopes take the student logits' place."""
    num_tokens, vocab_size = len(sides.student_hidden), len(sides.student_head)
    size = min(objective.chunk_tokens, num_tokens)
    student_buffer = sides.student_hidden.new_empty(size, vocab_size)
    teacher_buffer = sides.teacher_hidden.new_empty(size, vocab_size)
    for rows in slices(num_tokens, objective.chunk_tokens):
        num_rows = rows.stop - rows.start
        student, teacher = student_buffer[:num_rows], teacher_buffer[:num_rows]
        cap_slope = write_logits(sides.student_hidden[rows], sides.student_head, student, with_slope=with_slope)
        write_logits(sides.teacher_hidden[rows], sides.teacher_head, teacher)
        loss, factor = loss_and_slope_in_place(
            student, teacher, objective.beta, objective.temperature, with_slope=with_slope
        )
        if cap_slope is not None:
            student.mul_(cap_slope)
        scale = scale_of(sides.student_head)
        yield _Chunk(rows, loss, student, factor if scale == 1.0 else factor * scale)


def loss_and_slope_in_place(
    student: Tensor, teacher: Tensor, beta: float, temperature: float, *, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss [C] and the factor [C, 1] of the slope, which takes the place of the student's logits.

    Both sides are used up. A GPU has a kernel for it, `rows_triton`; without Triton it takes the CPU's way, in blocks.
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
    """Write the logits divided by the temperature to `out`, in float32."""
    out.copy_(logits)
    if temperature != 1.0:
        out.div_(temperature)


def _store(slope: Tensor, out: Tensor, factor: Tensor) -> None:
    """Round a slope to the dtype of `out`; in float16 each row is scaled first, or its small entries would be lost."""
    if out.dtype == torch.float16:
        peak = slope.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        slope.div_(peak)
        factor.mul_(peak)
    out.copy_(slope)
