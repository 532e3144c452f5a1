"""Linear layers whose forward pass uses the weights that will be exported: Q(W + s·BA), or Q(W) when W is trained.

Shapes: M rows of input, K inputs, N outputs, r rank, G groups a row. W is [N, K], A is [r, K], B is [N, r].

The adapter is inside the rounding because it is merged before the weights are quantized for export: a student trained
as Q(W)x + s·BAx is another model than the Q(W + s·BA) that ships. The former is here too, as an ablation.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from rayqd.model.rounding import low_rank_product, merged, rounded, rounded_backward
from rayqd.quant import Grid, Quantized
from rayqd.quant.int4 import Int4Grid, scale_gradient


class HeldScales(nn.Module):
    """A layer's scales, [N, G]: those that its grid gives the first weights, times 1 + a change that may be trained.

    The change is relative, so that one learning rate suits layers of every size.
    """

    first: Tensor

    def __init__(self, weight: Tensor, grid: Int4Grid, *, learned: bool) -> None:
        super().__init__()
        scales = grid.quantize(weight).scales
        least = torch.finfo(scales.dtype).tiny  # a zero group keeps a grid
        self.register_buffer("first", torch.where(scales == 0, least, scales).float(), persistent=False)
        self.change = nn.Parameter(torch.zeros_like(self.first)) if learned else None

    def forward(self) -> Tensor:
        """In float32; whoever rounds with them rounds them to their storage dtype first."""
        return self.first if self.change is None else self.first * (1 + self.change)


class QATLinear(nn.Module):
    """Linear layer computing x·Q(W)ᵀ; trains W itself, kept in float32, with a straight-through gradient."""

    def __init__(self, linear: nn.Linear, grid: Grid, *, trainable: bool, scales: HeldScales | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.scales = scales
        weight = linear.weight.detach().float() if trainable else linear.weight.detach()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = linear.bias

    def merged_weight(self) -> Tensor:
        """What gets quantized, [N, K] in float32."""
        return self.weight.detach().float()

    def quantized(self, name: str) -> Quantized:
        """Codes and scales of the moment; exactly what forward uses."""
        return _quantized(self.merged_weight(), self.scales, self.grid, name)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, None, None, self.scales, self.bias, 0.0, self.grid)


class QATLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer that computes x·Q(W + s·BA)ᵀ. Initialization, scaling and file format are PEFT's."""

    grid: Grid
    scales: HeldScales | None
    outside: bool  # the ablation: x·Q(W)ᵀ + s·xAᵀBᵀ

    def set_rounding(self, grid: Grid, scales: HeldScales | None = None, *, outside: bool = False) -> None:
        """PEFT makes the layer without knowing of any rounding; nothing works before this."""
        self.grid, self.scales, self.outside = grid, scales, outside

    @property
    def linear(self) -> nn.Linear:
        """The layer of the original model, frozen."""
        linear = self.get_base_layer()
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def low_rank(self) -> tuple[Tensor, Tensor, float]:
        """A [r, K], B [N, r] and s = alpha / r."""
        name = self.active_adapters[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        return a, b, self.scaling[name]

    def merged_weight(self) -> Tensor:
        """What gets quantized, [N, K] in float32."""
        with torch.no_grad():
            return merged(self.linear.weight, low_rank_product(*self.low_rank))

    def quantized(self, name: str) -> Quantized:
        """Codes and scales of the moment; exactly what forward uses, unless the adapter is outside the rounding."""
        return _quantized(self.merged_weight(), self.scales, self.grid, name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b, scaling = self.low_rank
        weight, bias = self.linear.weight, self.linear.bias
        if not self.outside:
            return _linear(x, weight, a, b, self.scales, bias, scaling, self.grid)
        beside = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
        return _linear(x, weight, None, None, self.scales, bias, 0.0, self.grid) + scaling * beside


@torch.no_grad()
def _quantized(weight: Tensor, scales: HeldScales | None, grid: Grid, name: str) -> Quantized:
    if scales is None:
        return grid.quantize(weight, name=name)
    assert isinstance(grid, Int4Grid)
    return grid.quantize(weight, name=name, scales=scales())


def _linear(
    x: Tensor,
    weight: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    scales: HeldScales | None,
    bias: Tensor | None,
    scaling: float,
    grid: Grid,
) -> Tensor:
    held = None if scales is None else scales()
    return _FakeQuantizedLinear.apply(x, weight, a, b, held, bias, scaling, grid)  # pyright: ignore


class _FakeQuantizedLinear(torch.autograd.Function):
    """Q is computed anew in the backward pass: between the two, no second copy of the weights exists.

    With G = dYᵀX, zero where the code saturated: dW = G, dB = s·G·Aᵀ, dA = s·Bᵀ·G, dX = dY·Q; scales: see
    `rayqd.quant.int4.scale_gradient`.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        scales: Tensor | None,
        bias: Tensor | None,
        scaling: float,
        grid: Grid,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b, scales)
        ctx.scaling, ctx.grid = scaling, grid
        values = rounded(weight, _delta(a, b, scaling), scales, grid)
        return F.linear(x, values.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, scales = ctx.saved_tensors
        (grad,) = grad_outputs
        delta = _delta(a, b, ctx.scaling)
        if not any(ctx.needs_input_grad[1:5]):
            values = rounded(weight, delta, scales, ctx.grid)
            return grad @ values.to(grad.dtype), *(None,) * 7
        grad_values = grad.flatten(0, -2).mT @ x.flatten(0, -2)
        values, through = rounded_backward(weight, delta, scales, ctx.grid, grad_values)
        grad_x = grad @ values.to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_scales = None
        if ctx.needs_input_grad[4]:
            grad_scales = scale_gradient(grad_values.float(), merged(weight, delta), scales, ctx.grid)
        if a is None or b is None:
            grad_weight = through.to(weight.dtype) if ctx.needs_input_grad[1] else None
            return grad_x, grad_weight, None, None, grad_scales, None, None, None
        grad_a = (ctx.scaling * (b.float().mT @ through)).to(a.dtype)
        grad_b = (ctx.scaling * (through @ a.float().mT)).to(b.dtype)
        return grad_x, None, grad_a, grad_b, grad_scales, None, None, None


def _delta(a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor | None:
    return None if a is None or b is None else low_rank_product(a, b, scaling)
