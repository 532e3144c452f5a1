"""The grid of an output head: INT4 or INT8, symmetric, its scales found by search.

Nothing is trained that could mend a rounding here, so a group takes the scale of least squared error; in 8 bits, where
little is left of it, the extreme's. Readers multiply codes with scales and do not ask how those were chosen.

Shapes: V rows (ids), d columns (hidden width), g weights a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.quant.grid import Quantized
from rayqd.quant.groups import check_finite, split_groups
from rayqd.quant.int4 import CODE_MAX, CODE_MIN, SHARES, choose_codes, choose_scales, dequantize_codes

if TYPE_CHECKING:
    from jaxtyping import Float

BITS = {"int4": 4, "int8": 8}
_BLOCK_WEIGHTS = 2**22  # rounded at a time: what is searched takes many times their room


@dataclass(frozen=True, slots=True)
class HeadGrid:
    """Evenly spaced codes a group, without zero points."""

    bits: int  # 4 or 8
    quant_group_size: int
    dtype: torch.dtype  # of scales and values

    @torch.no_grad()
    def quantize(self, weight: Float[Tensor, "V d"], *, name: str = "weight") -> Quantized:
        """Round to nearest, some rows at a time. Raises ModelError, naming `name`, where the weight is inf or nan."""
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        num_groups = weight.shape[1] // self.quant_group_size
        scales = torch.empty(len(weight), num_groups, dtype=self.dtype, device=weight.device)
        num_rows = max(1, _BLOCK_WEIGHTS // weight.shape[1])
        for start in range(0, len(weight), num_rows):
            rows = slice(start, start + num_rows)
            scales[rows] = self._scales(weight[rows])
            codes[rows] = self._codes(weight[rows], scales[rows])
        check_finite(weight, scales, name=name)
        return Quantized(codes, scales, bits=self.bits)

    @torch.no_grad()
    def dequantize(self, quantized: Quantized) -> Float[Tensor, "V d"]:
        """Return the values that the codes stand for, in `dtype`."""
        return dequantize_codes(quantized.codes, quantized.scales)

    def _scales(self, weight: Tensor) -> Tensor:
        size, dtype = self.quant_group_size, self.dtype
        if self.bits == 4:
            return _search_scales(split_groups(weight, size), dtype)
        eightfold, _ = choose_scales(weight, rule="signed", quant_group_size=size, scale_dtype=torch.float32)
        return (eightfold / 16).to(dtype)  # of the extreme / -8, the extreme / -128, rounded once

    def _codes(self, weight: Tensor, scales: Tensor) -> Tensor:
        if self.bits == 4:
            return choose_codes(weight, scales)
        divisor = torch.where(scales == 0, 1.0, scales.float()).unsqueeze(-1)
        rounded = split_groups(weight, self.quant_group_size).div(divisor).round_().clamp_(-128, 127)
        return rounded.to(torch.int8).reshape(weight.shape)


def _search_scales(groups: Float[Tensor, "V G g"], dtype: torch.dtype) -> Float[Tensor, "V G"]:
    """Return either end of a group, times a share, / -8: the scale of least squared error, the first of equals.

    Learner and engine search for themselves, on devices of their own. The errors are therefore summed in float64, where
    the order of a sum decides nothing.
    """
    ends = groups.amax(-1), groups.amin(-1)
    candidates = [(share * end / CODE_MIN).to(dtype) + 0.0 for end in ends for share in SHARES]
    best, least = candidates[0], _squared_error(groups, candidates[0])
    for scales in candidates[1:]:
        error = _squared_error(groups, scales)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def _squared_error(groups: Float[Tensor, "V G g"], scales: Float[Tensor, "V G"]) -> Float[Tensor, "V G"]:
    divisor = torch.where(scales == 0, 1.0, scales.float()).unsqueeze(-1)
    values = (groups / divisor).round_().clamp_(CODE_MIN, CODE_MAX).mul_(divisor)
    return values.sub_(groups).square_().sum(-1, dtype=torch.float64)


def make_head_grid(quant: QuantConfig, dtype: torch.dtype) -> HeadGrid | None:
    """Return the grid that `quant.head` describes, with values in `dtype`; None where the head stays dense."""
    if quant.head == "none":
        return None
    return HeadGrid(BITS[quant.head], quant.group_size, dtype)
