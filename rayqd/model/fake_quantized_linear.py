"""x·Q(W + s·BA)ᵀ and its gradients: one autograd function, and two custom operators that torch.compile does not trace.

Shapes: M rows of input, K inputs, N outputs, r rank. x is [..., K], W is [N, K], A is [r, K], B is [N, r].

On a GPU Q is computed anew in the backward pass: between the two, no second copy of the weights exists. A CPU keeps
it, and where it saturated: rounding takes it longer than memory costs. With G = dYᵀX, zero
where the code saturated: dW = G, dB = s·G·Aᵀ, dA = s·Bᵀ·G, dX = dY·Q. Where saturated weights get their gradient too,
G is never made: dB = s·dYᵀ(XAᵀ), dA = s·(dY·B)ᵀX.

A compiler that traced it would find Q computed twice from the same W, and keep it in between. Hence the operators,
which only compiled code calls: elsewhere they would cost more time on the CPU than the function does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rayqd.model.fake_quantize import fake_quantize, fake_quantize_backward, fake_quantize_with_mask
from rayqd.model.low_rank import LowRank
from rayqd.quant import Grid


class FakeQuantizer(NamedTuple):
    """How a layer rounds: the grid, its number among all grids as an operator takes it, the gradient at its limits."""

    grid: Grid
    number: Tensor  # a scalar on the CPU; a compiler would take a plain number for a constant, one for each layer
    stops_saturated: bool  # no gradient for weights whose code is at its limit


_GRIDS: list[Grid] = []


def make_fake_quantizer(grid: Grid, *, stops_saturated: bool = True) -> FakeQuantizer:
    """Return the quantizer of a layer; one grid has one number in this process."""
    index = next((i for i, known in enumerate(_GRIDS) if known is grid), None)
    if index is None:
        index = len(_GRIDS)
        _GRIDS.append(grid)
    return FakeQuantizer(grid, torch.tensor(index), stops_saturated)


def fake_quantized_linear(
    x: Tensor, weight: Tensor, low_rank: LowRank | None, bias: Tensor | None, quantizer: FakeQuantizer
) -> Tensor:
    """Return x·Q(W + s·BA)ᵀ + bias, [..., N] in x's dtype; differentiable with respect to x, W, A and B."""
    a, b, scaling = low_rank or (None, None, 0.0)
    if torch.compiler.is_compiling():
        return _forward_operator(x, weight, a, b, bias, scaling, quantizer.number, quantizer.stops_saturated)
    return _FakeQuantizedLinear.apply(x, weight, a, b, bias, scaling, quantizer.grid, quantizer.stops_saturated)  # type: ignore[no-any-return]


def _low_rank(a: Tensor | None, b: Tensor | None, scaling: float) -> LowRank | None:
    return None if a is None or b is None else LowRank(a, b, scaling)


def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    low_rank: LowRank | None,
    grid: Grid,
    stops_saturated: bool,
    wanted: Sequence[bool],
    values: Tensor | None = None,
    inside: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients with respect to x, W, A and B; those not `wanted` may be None.

    `values` and `inside`: Q, and where it was not clamped, if kept.
    """
    grad_weight = grad_a = grad_b = None
    if not any(wanted[1:]):
        values = fake_quantize(weight, low_rank, grid) if values is None else values
    elif low_rank is not None and not stops_saturated:
        values = fake_quantize(weight, low_rank, grid) if values is None else values
        grad_a, grad_b = low_rank.gradients_from_output(x, grad)
    else:
        grad_values = grad.flatten(0, -2).mT @ x.flatten(0, -2)
        if values is None or inside is None:
            values, through = fake_quantize_backward(weight, low_rank, grid, grad_values)
        else:
            through = torch.where(inside, grad_values.float(), 0.0)
        if low_rank is None:
            grad_weight = through.to(weight.dtype)
        else:
            grad_a, grad_b = low_rank.gradients_from_weight(through)
    grad_x = grad @ values.to(grad.dtype) if wanted[0] else None
    return grad_x, grad_weight, grad_a, grad_b


class _FakeQuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        bias: Tensor | None,
        scaling: float,
        grid: Grid,
        stops_saturated: bool,
    ) -> Tensor:
        low_rank, inside = _low_rank(a, b, scaling), None
        needs_mask = any(ctx.needs_input_grad[1:4]) and (a is None or stops_saturated)
        if needs_mask:
            values, inside = fake_quantize_with_mask(weight, low_rank, grid)
        else:
            values = fake_quantize(weight, low_rank, grid)
        ctx.save_for_backward(x, weight, a, b, None if x.is_cuda else values, inside)
        ctx.scaling, ctx.grid, ctx.stops_saturated = scaling, grid, stops_saturated
        return F.linear(x, values.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, *kept = ctx.saved_tensors
        low_rank = _low_rank(a, b, ctx.scaling)
        wanted = ctx.needs_input_grad[:4]
        gradients = _backward(grad_outputs[0], x, weight, low_rank, ctx.grid, ctx.stops_saturated, wanted, *kept)
        return *gradients, *(None,) * 4


@torch.library.custom_op("rayqd::fake_quantized_linear", mutates_args=())
def _forward_operator(
    x: Tensor,
    weight: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    bias: Tensor | None,
    scaling: float,
    grid: Tensor,
    stops_saturated: bool,
) -> Tensor:
    del stops_saturated  # the backward pass alone needs it
    values = fake_quantize(weight, _low_rank(a, b, scaling), _GRIDS[int(grid)])
    return F.linear(x, values.to(x.dtype), bias)


@_forward_operator.register_fake
def _(x: Tensor, weight: Tensor, *_others: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("rayqd::fake_quantized_linear_backward", mutates_args=())
def _backward_operator(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    scaling: float,
    grid: Tensor,
    stops_saturated: bool,
    wanted: list[bool],
) -> list[Tensor]:
    """Return the wanted gradients with respect to x, W, A and B, in this order."""
    low_rank = _low_rank(a, b, scaling)
    gradients = _backward(grad, x, weight, low_rank, _GRIDS[int(grid)], stops_saturated, wanted)
    return [g.contiguous() for g, is_wanted in zip(gradients, wanted, strict=True) if is_wanted and g is not None]


@_backward_operator.register_fake
def _(_grad: Tensor, x: Tensor, weight: Tensor, a: Tensor | None, b: Tensor | None, *others: Any) -> list[Tensor]:
    inputs = zip((x, weight, a, b), others[-1], strict=True)
    return [t.new_empty(t.shape) for t, is_wanted in inputs if is_wanted and t is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    x, weight, a, b, _, scaling, grid, stops_saturated = inputs
    ctx.save_for_backward(x, weight, a, b, grid)
    ctx.scaling, ctx.stops_saturated = scaling, stops_saturated


def _operator_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, a, b, grid = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    gradients = iter(_backward_operator(grad, x, weight, a, b, ctx.scaling, grid, ctx.stops_saturated, wanted))
    return *(next(gradients) if is_wanted else None for is_wanted in wanted), *(None,) * 4


_forward_operator.register_autograd(_operator_gradients, setup_context=_save)
