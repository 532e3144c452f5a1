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

from rayqd.model.rounding import low_rank_product, merged, rounded, rounded_backward
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
        values = rounded(weight, _delta(a, b, scaling), grid)
        return F.linear(x, values.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        (grad,) = grad_outputs
        delta = _delta(a, b, ctx.scaling)
        if not any(ctx.needs_input_grad[1:4]):
            values = rounded(weight, delta, ctx.grid)
            return grad @ values.to(grad.dtype), *(None,) * 7
        if a is not None and b is not None and not ctx.stops_saturated:
            values = rounded(weight, delta, ctx.grid)
            grad_x = grad @ values.to(grad.dtype) if ctx.needs_input_grad[0] else None
            return grad_x, None, *_low_rank_gradients(x, grad, a, b, ctx.scaling), *(None,) * 4
        grad_values = grad.flatten(0, -2).mT @ x.flatten(0, -2)
        values, through = rounded_backward(weight, delta, ctx.grid, grad_values)
        grad_x = grad @ values.to(grad.dtype) if ctx.needs_input_grad[0] else None
        if a is None or b is None:
            grad_weight = through.to(weight.dtype) if ctx.needs_input_grad[1] else None
            return grad_x, grad_weight, *(None,) * 6
        grad_a = (ctx.scaling * (b.float().mT @ through)).to(a.dtype)
        grad_b = (ctx.scaling * (through @ a.float().mT)).to(b.dtype)
        return grad_x, None, grad_a, grad_b, *(None,) * 4


def _low_rank_gradients(x: Tensor, grad: Tensor, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """dA [r, K] and dB [N, r] by way of [M, r], in the dtype of the activations."""
    x, grad = x.flatten(0, -2), grad.flatten(0, -2)
    grad_a = (grad @ b.to(grad.dtype)).mT @ x
    grad_b = grad.mT @ (x @ a.to(x.dtype).mT)
    return scaling * grad_a.to(a.dtype), scaling * grad_b.to(b.dtype)


def _delta(a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor | None:
    return None if a is None or b is None else low_rank_product(a, b, scaling)
