"""Linear layers whose forward pass uses the weights that will be exported, Q(W); `qat_lora.py` has those with adapters.

Shapes: M rows of input, K inputs, N outputs. W is [N, K].
"""

from __future__ import annotations

from torch import Tensor, nn

from rayqd.model.fake_quantized_linear import fake_quantized_linear, make_fake_quantizer
from rayqd.quant import Grid, Quantized


class QATLinear(nn.Module):
    """Linear layer computing x·Q(W)ᵀ; trains W itself, kept in float32, with a straight-through gradient."""

    def __init__(self, linear: nn.Linear, grid: Grid, *, trainable: bool) -> None:
        super().__init__()
        self.quantizer = make_fake_quantizer(grid)
        weight = linear.weight.detach().float() if trainable else linear.weight.detach()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = linear.bias

    @property
    def grid(self) -> Grid:
        """Return the grid that the layer rounds on."""
        return self.quantizer.grid

    def merged_weight(self) -> Tensor:
        """Return what gets quantized, [N, K] in float32."""
        return self.weight.detach().float()

    def quantize(self, name: str) -> Quantized:
        """Return the codes and scales of the moment, exactly what forward uses. `name` is for errors."""
        return self.grid.quantize(self.merged_weight(), name=name)

    def forward(self, x: Tensor) -> Tensor:
        """Return x·Q(W)ᵀ + bias, [..., N] from [..., K]."""
        return fake_quantized_linear(x, self.weight, None, self.bias, self.quantizer)
