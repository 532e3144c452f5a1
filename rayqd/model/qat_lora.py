"""Linear layers with an adapter whose forward pass uses the weights that will be exported: Q(W + s·BA).

Shapes: M rows of input, K inputs, N outputs, r rank. W is [N, K], A is [r, K], B is [N, r].

The adapter is inside the rounding because it is merged before the weights are quantized for export: a student trained
as Q(W)x + s·BAx is another model than the Q(W + s·BA) that ships. The former is here too, as an ablation.

Nothing imports this but what makes such layers: PEFT is seconds of a process's start.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLoraLinear
from torch import Tensor, nn
from torch.nn import functional as F

from rayqd.model.fake_quantize import merge
from rayqd.model.fake_quantized_linear import FakeQuantizer, fake_quantized_linear, make_fake_quantizer
from rayqd.model.low_rank import LowRank
from rayqd.quant import Grid, Quantized


class QATLoraLinear(PeftLoraLinear):
    """PEFT's LoRA layer that computes x·Q(W + s·BA)ᵀ. Initialization, scaling and file format are PEFT's."""

    quantizer: FakeQuantizer
    outside: bool  # the ablation: x·Q(W)ᵀ + s·xAᵀBᵀ

    def set_quantizer(self, grid: Grid, *, outside: bool = False, stops_saturated: bool = True) -> None:
        """Finish what PEFT constructs without knowing of any grid; nothing works before this."""
        self.quantizer, self.outside = make_fake_quantizer(grid, stops_saturated=stops_saturated), outside

    @property
    def grid(self) -> Grid:
        """Return the grid that the layer rounds on."""
        return self.quantizer.grid

    @property
    def linear(self) -> nn.Linear:
        """Return the layer of the original model, frozen."""
        linear = self.get_base_layer()
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def low_rank(self) -> LowRank:
        """Return A [r, K], B [N, r] and s = alpha / r."""
        name = self.active_adapters[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        assert isinstance(a, Tensor)
        assert isinstance(b, Tensor)
        return LowRank(a, b, self.scaling[name])

    def merged_weight(self) -> Tensor:
        """Return what gets quantized, [N, K] in float32."""
        with torch.no_grad():
            return merge(self.linear.weight, self.low_rank, self.grid)

    def quantize(self, name: str) -> Quantized:
        """Return the codes and scales of the moment, exactly what forward uses unless the adapter is outside."""
        return self.grid.quantize(self.merged_weight(), name=name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x·Q(W + s·BA)ᵀ + bias, [..., N] from [..., K]; what else PEFT may pass is ignored."""
        weight, bias = self.linear.weight, self.linear.bias
        if not self.outside:
            return fake_quantized_linear(x, weight, self.low_rank, bias, self.quantizer)
        a, b, scaling = self.low_rank
        low_rank_output = F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))
        return fake_quantized_linear(x, weight, None, bias, self.quantizer) + scaling * low_rank_output


class RoundedLoraLinear(QATLoraLinear):
    """The same layer where the module around it reads its weight: see `read_weight.py`."""

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return Q(W + s·BA), [N, K] in the grid's dtype."""
        original = self.linear.weight
        x = torch.eye(original.shape[1], device=original.device, dtype=self.grid.dtype)
        if not self.outside:
            return fake_quantized_linear(x, original, self.low_rank, None, self.quantizer).mT
        rounded = fake_quantized_linear(x, original, None, None, self.quantizer).mT
        return rounded + (self.low_rank.scaling * self.low_rank.b @ self.low_rank.a).to(rounded.dtype)
