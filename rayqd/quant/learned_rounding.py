"""Rounding that is learned: an offset a weight, and a share of each group's range (AutoRound, Cheng et al. 2023).

    scale = storage_dtype(rule(share · the group's ends))
    code  = clamp(round_half_even(w / scale + offset) + zero)        offset in ±0.5: up or down
    value = storage_dtype((code - zero) · scale)

Roundings pass the gradient on as it is. The elements that decide a group's scale get the code that keeps it, whatever
their offset, so that the grid finds scales and codes again in the weights that come out; the rule `searched`, which
tries several scales, as long as none of its products is a subnormal number.

Shapes: N rows (output features), K columns (input features), g weights a group, G = K / g groups a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rayqd.quant.groups import divide, split_groups
from rayqd.quant.int4 import CODE_MAX, CODE_MIN, Int4Grid

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MOST_OFFSET = 0.5


class _Fit(NamedTuple):
    """What a group's share makes of its range, [N, G, 1] each."""

    scale: Tensor  # 1 for a zero group
    zero: Tensor
    low: Tensor  # smallest and largest weight
    high: Tensor
    fewest: Tensor  # smallest and largest code - zero
    most: Tensor


class LearnedRounding:
    """One weight's offsets and shares. They begin as rounding to nearest."""

    def __init__(self, weight: Float[Tensor, "N K"], grid: Int4Grid) -> None:
        """Keep the weight in float32. Raises ConfigError where groups do not fill a row."""
        self._grid = grid
        self._groups = split_groups(weight.detach(), grid.quant_group_size)
        self._low, self._high, self._decides = _ends(self._groups, grid)
        self.offsets: Float[Tensor, "N G g"] = torch.zeros_like(self._groups).requires_grad_()
        self.shares: Float[Tensor, "N G 1"] = torch.ones_like(self._low).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """Return what is learned."""
        return [self.offsets, self.shares]

    def values(self) -> Float[Tensor, "N K"]:
        """Return the values that the codes stand for, in the grid's dtype, with gradients to offsets and shares."""
        fit = self._fit()
        steps = self._steps(fit)
        values = _straight_through(steps * fit.scale, self._grid.dtype)
        return values.flatten(1).to(self._grid.dtype)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Take offsets and shares back to where they may be."""
        self.offsets.clamp_(-MOST_OFFSET, MOST_OFFSET)
        self.shares.clamp_(0.0, 1.0)

    @torch.no_grad()
    def weights(self) -> Float[Tensor, "N K"]:
        """Return float32 weights that the grid rounds to these values."""
        fit = self._fit()
        values = (self._steps(fit) * fit.scale).to(self._grid.dtype).float()
        ends = (self._groups * self.shares).clamp(fit.low, fit.high).to(self._grid.dtype).float()
        return torch.where(self._decides, ends, values.clamp(fit.low, fit.high)).flatten(1)

    def _fit(self) -> _Fit:
        """Return scales by the grid's rule, with gradients to the shares."""
        rule, dtype = self._grid.rule, self._grid.dtype
        low, high = (_straight_through(end * self.shares, dtype) for end in (self._low, self._high))
        if rule == "asymmetric":
            scale = _straight_through(divide(high - low, CODE_MAX - CODE_MIN), dtype)
        elif rule == "absmax":
            scale = _straight_through(divide(high, 7.5), dtype)
        else:  # one end is 0, the other the extreme, which has the code -8
            scale = _straight_through((low + high) / CODE_MIN, dtype)
            high = torch.maximum(high, -low)
            low = -high
        scale = torch.where(scale == 0, 1.0, scale)
        zero = torch.zeros_like(scale)
        if rule == "asymmetric":
            zero = (CODE_MIN - (low / scale).detach().round()).clamp(CODE_MIN, CODE_MAX)
        with torch.no_grad():
            first, last = (end / scale for end in (low, high))
            least, greatest = CODE_MIN - zero, CODE_MAX - zero
            fewest = torch.minimum(first, last).round().clamp(least, greatest)
            most = torch.maximum(first, last).round().clamp(least, greatest)
        return _Fit(scale, zero, low.detach(), high.detach(), fewest, most)

    def _steps(self, fit: _Fit) -> Float[Tensor, "N G g"]:
        """Return code - zero of each weight."""
        offsets = torch.where(self._decides, 0.0, self.offsets)
        rounded = _round(self._groups / fit.scale + offsets)
        return torch.clamp(rounded, fit.fewest, fit.most)


def _ends(groups: Float[Tensor, "N G g"], grid: Int4Grid) -> tuple[Tensor, Tensor, Bool[Tensor, "N G g"]]:
    """Return each group's ends under the rule, 0 inside, [N, G, 1] each, and the elements that they are."""
    low, high = (end.unsqueeze(-1) for end in groups.aminmax(dim=-1))
    if grid.rule == "asymmetric":
        decides = _first_of(groups, low) & (low < 0) | _first_of(groups, high) & (high > 0)
        return low.clamp(max=0), high.clamp(min=0), decides
    extreme = torch.maximum(high, -low)
    decides = _first_of(groups.abs(), extreme)
    if grid.rule == "absmax":
        return -extreme, extreme, decides
    signed = torch.where(decides, groups, 0.0).sum(-1, keepdim=True)
    return signed.clamp(max=0), signed.clamp(min=0), decides


def _first_of(values: Float[Tensor, "N G g"], searched: Float[Tensor, "N G 1"]) -> Bool[Tensor, "N G g"]:
    """Return where the first element that equals `searched` is."""
    places = (values == searched).int().argmax(-1, keepdim=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, places, value=True)


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _straight_through(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` rounded to `dtype`, in float32, with the gradient of `x`."""
    return x + (x.to(dtype).float() - x).detach()
