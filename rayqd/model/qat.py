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
from rayqd.model.rounded_linear import Rounding, rounded_linear, rounding
from rayqd.model.rounding import merged
from rayqd.quant import Grid, Quantized


class QATLinear(nn.Module):
    """Linear layer computing x·Q(W)ᵀ; trains W itself, kept in float32, with a straight-through gradient."""

    def __init__(self, linear: nn.Linear, grid: Grid, *, trainable: bool) -> None:
        super().__init__()
        self.rounding = rounding(grid)
        weight = linear.weight.detach().float() if trainable else linear.weight.detach()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = linear.bias

    @property
    def grid(self) -> Grid:
        return self.rounding.grid

    def merged_weight(self) -> Tensor:
        """What gets quantized, [N, K] in float32."""
        return self.weight.detach().float()

    def quantized(self, name: str) -> Quantized:
        """Codes and scales of the moment; exactly what forward uses."""
        return self.grid.quantize(self.merged_weight(), name=name)

    def forward(self, x: Tensor) -> Tensor:
        return rounded_linear(x, self.weight, None, self.bias, self.rounding)


class QATLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer that computes x·Q(W + s·BA)ᵀ. Initialization, scaling and file format are PEFT's."""

    rounding: Rounding
    outside: bool  # the ablation: x·Q(W)ᵀ + s·xAᵀBᵀ

    def set_rounding(self, grid: Grid, *, outside: bool = False, stops_saturated: bool = True) -> None:
        """PEFT makes the layer without knowing of any rounding; nothing works before this."""
        self.rounding, self.outside = rounding(grid, stops_saturated=stops_saturated), outside

    @property
    def grid(self) -> Grid:
        return self.rounding.grid

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
        weight, bias = self.linear.weight, self.linear.bias
        if not self.outside:
            return rounded_linear(x, weight, self.low_rank, bias, self.rounding)
        a, b, scaling = self.low_rank
        beside = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
        return rounded_linear(x, weight, None, bias, self.rounding) + scaling * beside
