"""A grid: everything that says which values a 4-bit weight can take, and how a weight gets there.

One definition serves round-to-nearest, fake quantization in training, the weights on the wire and the exported file.

Shapes: N rows (output features), K columns (input features), g weights a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int8, UInt8


@dataclass(frozen=True, slots=True, eq=False)
class NestedScales:
    """Double quantization as bitsandbytes does it: 8-bit scales, in blocks of 256 that run over all N·K/g of them."""

    codes: UInt8[Tensor, " G"]  # index into bitsandbytes' dynamic map
    scales: Float[Tensor, " G/256"]  # float32, absmax of each block (the last may be shorter)
    offset: Float[Tensor, ""]  # float32, the mean that was taken off before


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A weight as it is stored and sent: codes, and one scale (and zero point) a group."""

    codes: Int8[Tensor, "N K"]  # int4: -8..7; int8: -128..127; nvfp4, nf4, fp4: 0..15, which of the format's values
    scales: Float[Tensor, "N K/g"]  # in their storage dtype; negative under the signed rule where the extreme is > 0
    zero_points: Int8[Tensor, "N K/g"] | None = None  # the code that means 0, -8..7; asymmetric int4 only
    tensor_scale: Float[Tensor, ""] | None = None  # nvfp4: multiplies every scale; float32, a power of two
    nested: NestedScales | None = None  # nf4, fp4 with double quantization: what `scales` were computed from
    bits: int = 4  # of a code; 8 only of an output head

    @property
    def quant_group_size(self) -> int:
        """Weights along a row that share one scale."""
        return self.codes.shape[1] // self.scales.shape[1]


class Grid(Protocol):
    """(format, group size, scale rule, storage dtype of the scale)."""

    @property
    def quant_group_size(self) -> int:
        """Weights along a row that share one scale."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the values; int4 stores its scales in it too."""
        ...

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zero points included."""
        ...

    def quantize(self, weight: Float[Tensor, "N K"], *, name: str = "weight") -> Quantized:
        """Round to nearest. Raises ModelError, naming `name`, where the weight is inf or nan."""
        ...

    def dequantize(self, quantized: Quantized) -> Float[Tensor, "N K"]:
        """Return the values that the codes stand for, in `dtype`."""
        ...

    def fake_quantize(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return dequantize(quantize(weight)) with the straight-through gradient: zero where a code saturated."""
        ...

    def fake_quantize_with_mask(self, weight: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """Return the values of `fake_quantize` without autograd, and True where its gradient passes."""
        ...


class StraightThrough(torch.autograd.Function):
    """Straight-through estimator (Bengio et al. 2013), clipped as in LSQ: no gradient where the code saturated."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid) -> Tensor:
        """Return the grid's values, and keep where no code saturated."""
        values, inside = grid.fake_quantize_with_mask(weight)
        ctx.save_for_backward(inside)
        ctx.weight_dtype = weight.dtype
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient on where no code saturated."""
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradients[0], 0.0).to(ctx.weight_dtype), None
