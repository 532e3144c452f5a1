"""Linear layers whose forward pass uses the weights that will be exported: Q(W + s·BA), or Q(W) when W is trained.

Shapes: M rows of input, K inputs, N outputs, r rank. W is [N, K], A is [r, K], B is [N, r].

The adapter is inside the rounding because it is merged before the weights are quantized for export: a student trained
as Q(W)x + s·BAx is another model than the Q(W + s·BA) that ships.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from rayqd.quant import Grid


class QATLinear(nn.Module):
    """Linear layer computing x·Q(W)ᵀ; trains W itself, kept in float32, with a straight-through gradient."""

    def __init__(self, linear: nn.Linear, grid: Grid, *, trainable: bool) -> None:
        super().__init__()
        self.grid = grid
        weight = linear.weight.detach().float() if trainable else linear.weight.detach()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = linear.bias

    def merged_weight(self) -> Tensor:
        """What gets quantized, [N, K] in float32."""
        return self.weight.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        return _FakeQuantizedLinear.apply(x, self.weight, None, None, self.bias, 0.0, self.grid)  # pyright: ignore


class QATLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer that computes x·Q(W + s·BA)ᵀ. Initialization, scaling and file format are PEFT's."""

    grid: Grid

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
            return _merge(self.linear.weight, *self.low_rank)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b, scaling = self.low_rank
        return _FakeQuantizedLinear.apply(x, self.linear.weight, a, b, self.linear.bias, scaling, self.grid)  # pyright: ignore


def _merge(weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
    """W + s·BA in float32, [N, K]. Forward, backward and export all come here, so that they round the same numbers."""
    if a is None or b is None:
        return weight.float()
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scaling)


class _FakeQuantizedLinear(torch.autograd.Function):
    """Q is computed anew in the backward pass: between the two, no second copy of the weights exists.

    With G = dYᵀX, zero where the code saturated: dW = G, dB = s·G·Aᵀ, dA = s·Bᵀ·G, dX = dY·Q.
    """

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
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling, ctx.grid = scaling, grid
        quantized, _ = grid.fake_quantize_with_mask(_merge(weight, a, b, scaling))
        return F.linear(x, quantized.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        (grad,) = grad_outputs
        quantized, inside = ctx.grid.fake_quantize_with_mask(_merge(weight, a, b, ctx.scaling))
        grad_x = grad @ quantized.to(grad.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:4]):
            return grad_x, None, None, None, None, None, None
        through = (grad.flatten(0, -2).mT @ x.flatten(0, -2)).float().mul_(inside)
        if a is None or b is None:
            return grad_x, through.to(weight.dtype), None, None, None, None, None
        grad_a = ctx.scaling * (b.float().mT @ through)
        grad_b = ctx.scaling * (through @ a.float().mT)
        return grad_x, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None, None
