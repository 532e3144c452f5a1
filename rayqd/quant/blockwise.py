"""bitsandbytes' 4-bit grids (NF4, FP4) as pure functions of tensors: a table of values, scaled by a group's absmax.

Shapes: N rows (output features), K columns (input features), g weights a group, G = K / g groups a row. bitsandbytes
cuts the flattened weight into blocks; where g divides K these are the groups of the rows.

Arithmetic is float32 whatever the weight's dtype, and the order of the roundings is the format, bit for bit that of
bitsandbytes' CPU kernels:

    scale = max|group|
    code  = the nearest of the table to w · (1 / scale), of two the smaller
    value = dtype(table[code] · scale)

With double quantization the scale in the last line is the nested one (rayqd/quant/nested.py), while codes are still
those of the scale before it. A group of zeros has scale 0 (nested: a small one of
either sign) and values of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.quant.codebooks import Codebook
from rayqd.quant.grid import NestedScales, Quantized, StraightThrough
from rayqd.quant.groups import check_finite, split_groups
from rayqd.quant.nested import nest, unnest

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int32

# bitsandbytes divides by no less.
SCALE_MIN = 1e-38


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockwiseGrid:
    """Sixteen codes of a table a group, scaled by its largest magnitude."""

    quant_group_size: int
    dtype: torch.dtype  # of values; scales are float32
    codebook: Codebook
    double_quant: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zero points included."""
        scale_bits = 8 + 32 / 256 if self.double_quant else 32
        return 4 + scale_bits / self.quant_group_size

    @torch.no_grad()
    def quantize(self, weight: Float[Tensor, "N K"], *, name: str = "weight") -> Quantized:
        """Round to nearest. Raises ModelError, naming `name`, where the weight is inf or nan."""
        groups = split_groups(weight, self.quant_group_size)
        absmax = groups.abs().amax(-1)
        check_finite(weight, absmax.to(self.dtype), name=name)
        scales, nested = self._nested(absmax)
        ascending = torch.tensor(self.codebook.ascending, dtype=torch.int8, device=weight.device)
        codes = ascending[_positions(groups, absmax, self.codebook)]
        return Quantized(codes.reshape(weight.shape), scales, nested=nested)

    @torch.no_grad()
    def dequantize(self, quantized: Quantized) -> Float[Tensor, "N K"]:
        """Return the values that the codes stand for, in `dtype`."""
        codes = quantized.codes.reshape(*quantized.scales.shape, -1)
        values = _float32(self.codebook.values, codes.device)[codes.to(torch.int32)]
        return (values * quantized.scales.unsqueeze(-1)).to(self.dtype).reshape(quantized.codes.shape)

    def fake_quantize(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return dequantize(quantize(weight)) with the straight-through gradient."""
        return StraightThrough.apply(weight, self)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    @torch.no_grad()
    def fake_quantize_with_mask(self, weight: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """Saturate only where a nested scale is so far below the absmax that the ends of the table are cut."""
        groups = split_groups(weight, self.quant_group_size)
        absmax = groups.abs().amax(-1)
        scales, nested = self._nested(absmax)
        sorted_values = _float32(self.codebook.sorted_values, weight.device)
        values = sorted_values[_positions(groups, absmax, self.codebook)]
        values = values.mul_(scales.unsqueeze(-1)).to(self.dtype)
        if nested is None:
            inside = torch.ones_like(groups, dtype=torch.bool)
        else:
            inside = groups.abs() <= (self.codebook.reach * scales).unsqueeze(-1)
        return values.reshape(weight.shape), inside.reshape(weight.shape)

    def _nested(self, absmax: Float[Tensor, "N G"]) -> tuple[Float[Tensor, "N G"], NestedScales | None]:
        """Return the scales to dequantize with, and what they were computed from."""
        if not self.double_quant:
            return absmax, None
        nested = nest(absmax)
        return unnest(nested, len(absmax)), nested


def _positions(
    groups: Float[Tensor, "N G g"], absmax: Float[Tensor, "N G"], codebook: Codebook
) -> Int32[Tensor, "N G g"]:
    """Where in the sorted table the nearest value is. Times the inverse, as bitsandbytes does; division rounds less."""
    shares = groups * (1.0 / absmax.clamp(min=SCALE_MIN)).unsqueeze(-1)
    boundaries = _float32(codebook.boundaries, groups.device)
    return torch.bucketize(shares.contiguous(), boundaries, out_int32=True)


def _float32(values: Sequence[float], device: torch.device) -> Tensor:
    """Made anew at each call: a compiler sees a constant in it, and through a cache it would not see."""
    return torch.tensor(values, dtype=torch.float32, device=device)
