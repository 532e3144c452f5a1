"""The INT4 grid as pure functions of tensors: scales, codes, values.

Shapes: N rows (output features), K columns (input features), g weights a group, G = K / g groups a row.

Arithmetic is float32 whatever the weight's dtype, and the order of the roundings is the format:

    scale = storage_dtype(rule(group))                              first rounding
    code  = clamp(round_half_even(w / scale) + zero, -8, 7)         second, from the rounded scale
    value = storage_dtype((code - zero) * scale)                    third

The last line is what compressed-tensors, transformers and vLLM compute, so they get the same bits. A group whose scale
rounds to zero is a zero group: it stores scale 0 and its values are +0.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized, StraightThrough
from rayqd.quant.groups import check_finite, divide, split_groups

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int8

Rule = Literal["signed", "absmax", "asymmetric", "searched"]

CODE_MIN, CODE_MAX = -8, 7

# What `searched` multiplies a group's extreme with.
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass(frozen=True, slots=True)
class Int4Grid:
    """Sixteen evenly spaced codes a group."""

    quant_group_size: int
    dtype: torch.dtype  # of scales and values
    rule: Rule

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zero points included."""
        zero_point_bits = 4 if self.rule == "asymmetric" else 0
        return 4 + (8 * self.dtype.itemsize + zero_point_bits) / self.quant_group_size

    @torch.no_grad()
    def quantize(self, weight: Float[Tensor, "N K"], *, name: str = "weight") -> Quantized:
        """Round to nearest. Raises ModelError, naming `name`, where the weight is inf or nan."""
        scales, zero_points = self._scales(weight)
        check_finite(weight, scales, name=name)
        return Quantized(choose_codes(weight, scales, zero_points), scales, zero_points)

    @torch.no_grad()
    def dequantize(self, quantized: Quantized) -> Float[Tensor, "N K"]:
        """Return the values that the codes stand for, in `dtype`."""
        return dequantize_codes(quantized.codes, quantized.scales, quantized.zero_points)

    def fake_quantize(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return dequantize(quantize(weight)) with the straight-through gradient."""
        return StraightThrough.apply(weight, self)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    @torch.no_grad()
    def fake_quantize_with_mask(self, weight: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """Return the values, and True where the code did not saturate."""
        return quantize_and_dequantize(weight, *self._scales(weight))

    def _scales(self, weight: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N G"], Int8[Tensor, "N G"] | None]:
        return choose_scales(weight, rule=self.rule, quant_group_size=self.quant_group_size, scale_dtype=self.dtype)


def choose_scales(
    weight: Float[Tensor, "N K"], *, rule: Rule, quant_group_size: int, scale_dtype: torch.dtype
) -> tuple[Float[Tensor, "N G"], Int8[Tensor, "N G"] | None]:
    """Return scales in `scale_dtype`, and the zero points where the rule has them (codes that mean 0, in -8..7).

    signed: the element of largest magnitude, the first of equals, / -8 (GGUF Q4_0); may be negative.
    absmax: the largest magnitude / 7.5 (torchao's and compressed-tensors' symmetric grid).
    searched: a share of the largest or of the smallest element / -8, whichever gives the least squared error.
    asymmetric: (max - min) / 15 with 0 inside [min, max], so that zero keeps a code (torchao's affine grid).
    """
    groups = split_groups(weight, quant_group_size)
    if rule == "signed":
        return (_extremes(groups) / CODE_MIN).to(scale_dtype) + 0.0, None  # + 0.0: a zero group's scale is not -0.0
    if rule == "searched":
        return _searched_scales(groups, scale_dtype), None
    low, high = groups.amin(-1), groups.amax(-1)
    if rule == "absmax":
        return divide(torch.maximum(high, -low), 7.5).to(scale_dtype) + 0.0, None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = divide(high - low, CODE_MAX - CODE_MIN).to(scale_dtype)
    zero_points = CODE_MIN - (low / _divisor(scales)).round_()
    return scales, zero_points.clamp_(CODE_MIN, CODE_MAX).to(torch.int8)


def _extremes(groups: Float[Tensor, "N G g"]) -> Float[Tensor, "N G"]:
    """Return each group's element of largest magnitude, the first of equals.

    On a CPU that is its largest or its smallest element, found in a quarter of the time that places take; the place is
    looked up where the two are of one size.
    """
    if not groups.is_cpu or torch.compiler.is_compiling():
        return groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    low, high = groups.aminmax(dim=-1)
    extremes = torch.where(high >= -low, high, low)
    if bool((ties := high == -low).any()):
        tied = groups[ties]
        extremes[ties] = tied.gather(-1, tied.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return extremes


def _searched_scales(groups: Float[Tensor, "N G g"], scale_dtype: torch.dtype) -> Float[Tensor, "N G"]:
    """Return either end of a group, times a share, / -8: the scale of least squared error, the first of equals."""
    candidates = [
        (share * end / CODE_MIN).to(scale_dtype) + 0.0 for end in (groups.amax(-1), groups.amin(-1)) for share in SHARES
    ]
    best, least = candidates[0], _squared_error(groups, candidates[0])
    for scales in candidates[1:]:
        error = _squared_error(groups, scales)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def _squared_error(groups: Float[Tensor, "N G g"], scales: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    divisor = _divisor(scales).unsqueeze(-1)
    values = (groups / divisor).round_().clamp_(CODE_MIN, CODE_MAX).mul_(divisor)
    return values.sub_(groups).square_().sum(-1)


def choose_codes(
    weight: Float[Tensor, "N K"], scales: Float[Tensor, "N G"], zero_points: Int8[Tensor, "N G"] | None = None
) -> Int8[Tensor, "N K"]:
    """Return the nearest codes on a grid whose scales are given; ties go to the even multiple of the scale."""
    rounded = _round(weight, _divisor(scales), zero_points)
    return rounded.clamp_(CODE_MIN, CODE_MAX).to(torch.int8).reshape(weight.shape)


def dequantize_codes(
    codes: Int8[Tensor, "N K"], scales: Float[Tensor, "N G"], zero_points: Int8[Tensor, "N G"] | None = None
) -> Float[Tensor, "N K"]:
    """Return (code - zero) * scale in the scales' dtype, as compressed-tensors computes it."""
    steps = codes.reshape(*scales.shape, -1).to(scales.dtype)
    if zero_points is not None:
        steps = steps - zero_points.to(scales.dtype).unsqueeze(-1)
    return (steps * scales.unsqueeze(-1)).reshape(codes.shape)


def quantize_and_dequantize(
    weight: Float[Tensor, "N K"], scales: Float[Tensor, "N G"], zero_points: Int8[Tensor, "N G"] | None = None
) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
    """Return values on the grid, bit-equal to those of the stored codes, and where the rounding was not clamped.

    The codes stay in float32: (code - zero) * scale has at most 4 + 11 significant bits there for 16-bit scales, so it
    is exact until the one rounding to the scales' dtype. A weight that is not finite gives values that are not.
    """
    divisor = _divisor(scales)
    rounded = _round(weight, divisor, zero_points)
    steps = rounded.clamp(CODE_MIN, CODE_MAX)
    inside = steps == rounded
    if zero_points is not None:
        steps.sub_(zero_points.unsqueeze(-1))
    values = steps.mul_(divisor.unsqueeze(-1)).to(scales.dtype)
    return values.reshape(weight.shape), inside.reshape(weight.shape)


def _divisor(scales: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """Return the scales in float32; a zero group, all of whose weights are far below 0.5, divides by 1 instead."""
    return torch.where(scales == 0, 1.0, scales.to(torch.float32))


def _round(
    weight: Float[Tensor, "N K"], divisor: Float[Tensor, "N G"], zero_points: Int8[Tensor, "N G"] | None
) -> Float[Tensor, "N G g"]:
    """Return the codes before they are clamped, in float32. Division, because w * (1 / scale) rounds twice."""
    rounded = split_groups(weight, weight.shape[-1] // divisor.shape[-1]).div(divisor.unsqueeze(-1)).round_()
    if zero_points is not None:
        return rounded.add_(zero_points.unsqueeze(-1))
    return rounded.add_(0.0)  # -0.0 becomes the +0.0 that an integer code gives
