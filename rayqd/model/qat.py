"""Linear layers whose forward pass uses the weights that will be exported: Q(W + s·BA), or Q(W) when W is trained.

Shapes: M rows of input, K inputs, N outputs, r rank. W is [N, K], A is [r, K], B is [N, r].

The adapter is inside the rounding because it is merged before the weights are quantized for export: a student trained
as Q(W)x + s·BAx is another model than the Q(W + s·BA) that ships. The former is here too, as an ablation.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from rayqd.model.low_rank import LowRank
from rayqd.model.rounding import merged, rounded, rounded_backward
from rayqd.quant import Grid, Quantized


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

    def quantized(self, name: str) -> Quantized:
        """Codes and scales of the moment; exactly what forward uses."""
        return self.grid.quantize(self.merged_weight(), name=name)

    def forward(self, x: Tensor) -> Tensor:
        return _FakeQuantizedLinear.apply(x, self.weight, None, None, self.bias, 0.0, self.grid, True)  # pyright: ignore


class QATLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer that computes x·Q(W + s·BA)ᵀ. Initialization, scaling and file format are PEFT's."""

    grid: Grid
    outside: bool  # the ablation: x·Q(W)ᵀ + s·xAᵀBᵀ
    stops_saturated: bool  # no gradient for weights whose code is at its limit

    def set_rounding(self, grid: Grid, *, outside: bool = False, stops_saturated: bool = True) -> None:
        """PEFT makes the layer without knowing of any rounding; nothing works before this."""
        self.grid, self.outside, self.stops_saturated = grid, outside, stops_saturated

    @property
    def linear(self) -> nn.Linear:
        """The layer of the original model, frozen."""
        linear = self.get_base_layer()
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def low_rank(self) -> LowRank:
        """A [r, K], B [N, r] and s = alpha / r."""
        name = self.active_adapters[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        return LowRank(a, b, self.scaling[name])

    def merged_weight(self) -> Tensor:
        """What gets quantized, [N, K] in float32."""
        with torch.no_grad():
            return merged(self.linear.weight, self.low_rank, self.grid)

    def quantized(self, name: str) -> Quantized:
        """Codes and scales of the moment; exactly what forward uses, unless the adapter is outside the rounding."""
        return self.grid.quantize(self.merged_weight(), name=name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b, scaling = self.low_rank
        weight, bias = self.linear.weight, self.linear.bias
        if not self.outside:
            return _FakeQuantizedLinear.apply(x, weight, a, b, bias, scaling, self.grid, self.stops_saturated)  # pyright: ignore
        beside = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
        return _FakeQuantizedLinear.apply(x, weight, None, None, bias, 0.0, self.grid, True) + scaling * beside  # pyright: ignore


class _FakeQuantizedLinear(torch.autograd.Function):
    """Q is computed anew in the backward pass: between the two, no second copy of the weights exists.

    With G = dYᵀX, zero where the code saturated: dW = G, dB = s·G·Aᵀ, dA = s·Bᵀ·G, dX = dY·Q. Where saturated weights
    get their gradient too, G is never needed: dB = s·dYᵀ(XAᵀ), dA = s·(dY·B)ᵀX.
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
        stops_saturated: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling, ctx.grid, ctx.stops_saturated = scaling, grid, stops_saturated
        values = rounded(weight, _low_rank(a, b, scaling), grid)
        return F.linear(x, values.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        (grad,) = grad_outputs
        low_rank = _low_rank(a, b, ctx.scaling)
        grad_weight = grad_a = grad_b = None
        if not any(ctx.needs_input_grad[1:4]):
            values = rounded(weight, low_rank, ctx.grid)
        elif low_rank is not None and not ctx.stops_saturated:
            values = rounded(weight, low_rank, ctx.grid)
            grad_a, grad_b = low_rank.gradients(x, grad)
        else:
            grad_values = grad.flatten(0, -2).mT @ x.flatten(0, -2)
            values, through = rounded_backward(weight, low_rank, ctx.grid, grad_values)
            if low_rank is None:
                grad_weight = through.to(weight.dtype)
            else:
                grad_a, grad_b = low_rank.gradients_of_weight(through)
        grad_x = grad @ values.to(grad.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, grad_a, grad_b, *(None,) * 4


def _low_rank(a: Tensor | None, b: Tensor | None, scaling: float) -> LowRank | None:
    return None if a is None or b is None else LowRank(a, b, scaling)
