"""The NVFP4 grid as pure functions of tensors: E2M1 codes, an FP8 scale for 16 of them, a power of two for all.

Shapes: N rows (output features), K columns (input features), G = K / 16 groups a row.

Arithmetic is float32 whatever the weight's dtype, and the order of the roundings is the format:

    tensor_scale = the least 2^k >= max|w| / (448 · 6)                     unless it is given
    scale        = e4m3(clamp(max|group| / 6 / tensor_scale, 2^-6, 448))   first rounding
    code         = e2m1(w / (scale · tensor_scale)), at most ±6            second, from the rounded scale, half to even
    value        = e2m1 · scale · tensor_scale                             exact

A power of two, where NVIDIA's recipe takes max|w| / (448 · 6) itself, because a value then has 2 + 4 significant bits
times 2^k: float32 and bfloat16 hold it exactly, and every library gets the same one, whether it multiplies by the
tensor's scale (torchao) or divides by its inverse (compressed-tensors, vLLM). The FP8 scales lose nothing by it.

Scales stay at or above 2^-6, the least normal FP8 number, in groups of zeros too. So does torchao's; and vLLM's Marlin
kernel takes smaller ones for zero. That is at most 2^-14 of the largest scale. Zero keeps the weight's sign (code 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized, StraightThrough
from rayqd.quant.groups import check_finite, split_groups

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int8

GROUP_SIZE = 16

# What codes 0 to 7 stand for; 8 to 15 are their negatives, -0.0 first.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX = 6.0
SCALE_MIN, SCALE_MAX = 2.0**-6, 448.0

# For a tensor of zeros. Far below any weight, and its inverse and all values are normal float32 and bfloat16 numbers.
TENSOR_SCALE_MIN = 2.0**-100

# Bits of float32 numbers: the exponent's, 1.0, 4.0; and what turns 2^e into 1.5 · 2^(e + 22).
_EXPONENT, _ONE, _FOUR, _TO_MAGIC = 0x7F800000, 0x3F800000, 0x40800000, (22 << 23) | (1 << 22)


@dataclass(frozen=True, slots=True, eq=False)
class NVFP4Grid:
    """Sixteen E2M1 codes in groups of 16.

    A given `tensor_scale` holds whatever the weights become, and can be shared by tensors that an engine fuses. It is a
    tensor, not a number, because a compiler takes numbers for constants and would compile anew for each.
    """

    dtype: torch.dtype  # of values
    tensor_scale: Float[Tensor, ""] | None = None  # float32, a power of two, on the weights' device

    def __post_init__(self) -> None:
        assert self.tensor_scale is None or math.frexp(self.tensor_scale.item())[0] == 0.5, "not a power of two"

    @property
    def quant_group_size(self) -> int:
        """Weights along a row that share one scale: always 16."""
        return GROUP_SIZE

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zero points included."""
        return 4 + 8 / GROUP_SIZE

    @torch.no_grad()
    def quantize(self, weight: Float[Tensor, "N K"], *, name: str = "weight") -> Quantized:
        """Round to nearest. Raises ModelError, naming `name`, where the weight is inf or nan."""
        groups = split_groups(weight, GROUP_SIZE)
        amax = _absmax(groups)
        scales, tensor_scale = self._scales(amax)
        divisor = scales.to(torch.float32) * tensor_scale
        check_finite(weight, torch.maximum(amax, divisor * E2M1_MAX).to(self.dtype), name=name)
        rounded = round_to_e2m1(groups / divisor.unsqueeze(-1)).clamp_(-E2M1_MAX, E2M1_MAX)
        return Quantized(_codes(rounded).reshape(weight.shape), scales, tensor_scale=tensor_scale)

    @torch.no_grad()
    def dequantize(self, quantized: Quantized) -> Float[Tensor, "N K"]:
        """Return the values that the codes stand for, in `dtype`."""
        assert quantized.tensor_scale is not None
        codes = quantized.codes.reshape(*quantized.scales.shape, GROUP_SIZE)
        divisor = quantized.scales.to(torch.float32) * quantized.tensor_scale
        values = _values(codes.device)[codes.to(torch.int32)] * divisor.unsqueeze(-1)
        return values.to(self.dtype).reshape(quantized.codes.shape)

    def fake_quantize(self, weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Return dequantize(quantize(weight)) with the straight-through gradient."""
        return StraightThrough.apply(weight, self)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    @torch.no_grad()
    def fake_quantize_with_mask(self, weight: Float[Tensor, "N K"]) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """Count as saturated what would round to 8 or more, had E2M1 a next code: |w / scale| >= 7.

        A scale of `tensor_scale`'s choosing never saturates: rounding to FP8 lowers it by 1/17 at most, and 6 · 17/16
        is below 7. With a given one, weights in groups whose scale would exceed 448 do.
        """
        groups = split_groups(weight, GROUP_SIZE)
        scales, tensor_scale = self._scales(_absmax(groups))
        divisor = (scales.to(torch.float32) * tensor_scale).unsqueeze(-1)
        rounded = round_to_e2m1(groups / divisor)
        steps = rounded.clamp(-E2M1_MAX, E2M1_MAX)
        inside = steps == rounded
        values = steps.mul_(divisor).to(self.dtype)
        return values.reshape(weight.shape), inside.reshape(weight.shape)

    def _scales(self, amax: Float[Tensor, "N G"]) -> tuple[Float[Tensor, "N G"], Float[Tensor, ""]]:
        tensor_scale = choose_tensor_scale(amax.amax()) if self.tensor_scale is None else self.tensor_scale
        return choose_scales(amax, tensor_scale), tensor_scale


def choose_tensor_scale(amax: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return the least power of two, a float32, that gives a group of largest magnitude `amax` a scale <= 448."""
    least = (amax.to(torch.float32) / (SCALE_MAX * E2M1_MAX)).clamp(min=TENSOR_SCALE_MIN)
    return ((least.view(torch.int32) + (1 << 23) - 1) & _EXPONENT).view(torch.float32)  # up to the next exponent


def choose_scales(amax: Float[Tensor, "N G"], tensor_scale: Float[Tensor, ""]) -> Float[Tensor, "N G"]:
    """Return scales in float8_e4m3fn that put the largest magnitude of a group, `amax`, at 6, the last code."""
    return (amax / E2M1_MAX / tensor_scale).clamp_(SCALE_MIN, SCALE_MAX).to(torch.float8_e4m3fn)


def round_to_e2m1(quotients: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the nearest E2M1 values, ties to the even code, zeros with their sign; past 6 it goes on in steps of 2.

    Where |x| is in [2^e, 2^(e+1)), e one of 0 (and below), 1, 2 (and above), neighbours are 2^(e-1) apart. A float32 in
    [2^(e+22), 2^(e+23)) keeps multiples of 2^(e-1), so adding and taking off 1.5 · 2^(e+22) rounds to them.
    """
    exponents = (quotients.view(torch.int32) & _EXPONENT).clamp_(_ONE, _FOUR)
    magic = exponents.add_(_TO_MAGIC).view(torch.float32)
    return (quotients + magic).sub_(magic).copysign_(quotients)


def _absmax(groups: Float[Tensor, "N G g"]) -> Float[Tensor, "N G"]:
    low, high = groups.aminmax(dim=-1)
    return torch.maximum(high, -low)


def _codes(values: Float[Tensor, "*shape"]) -> Int8[Tensor, "*shape"]:
    magnitudes = torch.bucketize(values.abs().contiguous(), _values(values.device)[:8], out_int32=True)
    return (magnitudes + 8 * torch.signbit(values)).to(torch.int8)


@cache
def _values(device: torch.device) -> Float[Tensor, " 16"]:
    return torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float32, device=device)
