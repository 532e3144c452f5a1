"""GPTQ on our own grid: rounding in which every column makes up for the errors of the columns before it.

Frantar et al. 2023, Cholesky form, groups along K. With H = 2/T XᵀX and H⁻¹ = UᵀU, U upper:

    error_j = (w_j - q_j) / U_jj,    w_k -= U_jk · error_j    for every k > j

With act-order the columns are taken in the order of falling H_jj. The groups stay where they are along K, so that a
checkpoint needs no index of them, and all scales are fixed before the first column is rounded.

The result is not the rounded weight but a continuous one beside it: rounding that to nearest gives GPTQ's codes and
scales, and training can start from it with the weights spread inside their cells, where a small step changes a code.

Shapes: N rows (output features), K columns (input features), g weights a group. Inside this file weights are
transposed, so that a column is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.quant import int4
from rayqd.quant.int4 import Int4Grid

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

# Half-width, in scales, of the part of a cell where a weight may lie. A bfloat16 is off by up to 2^-8 of its size, and
# that is at most 15.43 scales: after the cast 0.43 + 0.061 is still nearer to this code than to the next.
# The rule `searched` takes the scale of least squared error, so there only weights on the grid keep their scale.
CELL = 0.43

DAMPING_RETRIES = 3


@torch.no_grad()
def gptq(
    weight: Float[Tensor, "N K"],
    hessian: Float[Tensor, "K K"],
    grid: Int4Grid,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    search_scales: bool = True,
    name: str = "weight",
) -> Float[Tensor, "N K"]:
    """Return float32 weights that `grid` rounds to GPTQ's codes and scales, also after a cast to its scales' dtype.

    `hessian` is 2/T XᵀX up to a factor, and `damping` the share of its mean diagonal that is added to the diagonal. A
    group's scale follows the grid's rule on the weights as they are when its first column is reached, with `act_order`
    on the original ones; the elements that decide the scale get the code that keeps it. With `search_scales`, and
    always under the rule `searched`, these elements are first drawn in, and where scales have a sign the extreme of the
    other sign may take their place, where that lessens GPTQ's own error of the group, the sum of error_j². A column
    without input (zero in `hessian`) is rounded to nearest.

    Raises ModelError, naming `name`, where the weight or the hessian holds inf or nan, or where a thousandfold damping
    does not make the hessian positive definite.
    """
    int4.check_finite(weight, weight, name=name)
    g = grid.quant_group_size
    factor, order = _inverse_factor(hessian, damping, act_order=act_order, name=name)
    columns = weight.float().mT[order].contiguous()
    diagonal = torch.empty_like(factor.diagonal()).scatter_(0, order, factor.diagonal())
    search_scales = search_scales or grid.rule == "searched"

    def fit(group: Tensor, start: int) -> _GroupFit:
        if search_scales:
            return _search(group, diagonal[start : start + g], grid)
        return _fit(_choose_anchors(group, grid), grid).expand_over(g)

    groups = range(0, len(columns), g)
    fitted = [fit(weight[:, k : k + g].float().mT.contiguous(), k) for k in groups] if act_order else []
    for start in groups:
        block, end = columns[start : start + g], start + g
        if not act_order:
            fitted = [fit(block, start)]
        places = [divmod(int(k), g) for k in order[start:end].cpu()] if act_order else [(0, j) for j in range(g)]
        errors = _round_block(block, factor[start:end, start:end], fitted, places, grid)
        columns[end:].addmm_(factor[start:end, end:].mT, errors, alpha=-1)
    return torch.empty_like(columns).index_copy_(0, order, columns).mT.contiguous()


@dataclass(frozen=True, slots=True)
class _Anchors:
    """The elements that decide a group's scale: one a row, or (asymmetric) the largest and the smallest."""

    places: Int64[Tensor, "m N"]  # column in the group
    values: Float[Tensor, "m N"]  # 0: there is none


@dataclass(frozen=True, slots=True)
class _Scale:
    """A group's scale, and what its elements may be without changing it."""

    scales: Float[Tensor, " N"]  # 1 for a zero group
    low: Float[Tensor, " N"]  # smallest and largest weight
    high: Float[Tensor, " N"]
    fewest: Float[Tensor, " N"]  # smallest and largest code - zero point
    most: Float[Tensor, " N"]
    anchors: _Anchors  # exact in the scales' dtype
    exist: Bool[Tensor, "m N"]  # which of them there are
    steps: Float[Tensor, "m N"]  # their codes - zero point

    def nearest(self, group: Float[Tensor, "g N"], out: Float[Tensor, "g N"]) -> Float[Tensor, "g N"]:
        """Write to `out` the values of the nearest codes, of anchors of those that they keep, before any cast."""
        torch.div(group, self.scales, out=out).round_().clamp_(self.fewest, self.most)
        return self._with_anchors(out, self.steps).mul_(self.scales)

    def expand_over(self, g: int) -> _GroupFit:
        """Return the same for each of `g` columns, with the anchors at their places."""
        empty = self.scales.new_zeros(g, len(self.scales))
        fewest, most = (self._with_anchors(empty + end, self.steps) for end in (self.fewest, self.most))
        anchored = self._with_anchors(empty.bool(), torch.ones_like(self.exist))
        anchors = self._with_anchors(empty, self.anchors.values)
        scales, low, high = (same.expand(g, -1) for same in (self.scales, self.low, self.high))
        return _GroupFit(scales, low, high, fewest, most, anchored, anchors)

    def _with_anchors(self, group: Tensor, values: Tensor) -> Tensor:
        """Return `group` with `values` where the anchors are, in place; where one is missing another may stand."""
        for place, value, exists in zip(self.anchors.places, values, self.exist, strict=True):
            group.scatter_(0, place[None], torch.where(exists, value, group.gather(0, place[None])))
        return group


@dataclass(frozen=True, slots=True)
class _GroupFit:
    """A `_Scale` for each column of its group."""

    scales: Float[Tensor, "g N"]
    low: Float[Tensor, "g N"]
    high: Float[Tensor, "g N"]
    fewest: Float[Tensor, "g N"]  # of an anchor, its own
    most: Float[Tensor, "g N"]
    anchored: Bool[Tensor, "g N"]  # whether it is an anchor
    anchors: Float[Tensor, "g N"]  # its value if it is, else 0


def _fit(anchors: _Anchors, grid: Int4Grid, share: float | Float[Tensor, " N"] = 1.0) -> _Scale:
    """Return the scale that the grid's rule takes from the anchors, multiplied by `share`."""
    exist = anchors.values != 0
    values = (share * anchors.values).to(grid.dtype).float()
    rule = "signed" if grid.rule == "searched" else grid.rule
    scales, zero_points = int4.choose_scales(values.mT, rule=rule, quant_group_size=len(values), scale_dtype=grid.dtype)
    scales = torch.where(scales == 0, 1.0, scales.float()).squeeze(-1)
    zeros = torch.zeros_like(scales) if zero_points is None else zero_points.float().squeeze(-1)
    low, high = values.amin(0).clamp(max=0), values.amax(0).clamp(min=0)
    if zero_points is None:
        high = torch.maximum(high, -low)
        low = -high

    def steps(values: Tensor) -> Tensor:
        return (values / scales).round_().clamp(int4.CODE_MIN - zeros, int4.CODE_MAX - zeros)

    ends = steps(torch.stack([low, high]))  # the other way round where the scale is negative
    kept = _Anchors(anchors.places, values)
    return _Scale(scales, low, high, ends.amin(0), ends.amax(0), kept, exist, steps(values))


def _choose_anchors(group: Float[Tensor, "g N"], grid: Int4Grid) -> _Anchors:
    """Return the elements that decide the scale under the grid's rule: the extreme, or the smallest and the largest."""
    if grid.rule == "asymmetric":
        largest, smallest = _largest(group, group), _largest(-group, group)
        places = torch.cat([largest.places, smallest.places])
        return _Anchors(places, torch.cat([largest.values, smallest.values]))
    return _largest(group.abs(), group)


def _largest(sizes: Float[Tensor, "g N"], group: Float[Tensor, "g N"]) -> _Anchors:
    """Return the element of a row's largest size, the first of equals; none when that is not above zero."""
    largest, places = sizes.max(0, keepdim=True)
    return _Anchors(places, torch.where(largest > 0, group.gather(0, places), 0.0))


def _search(group: Float[Tensor, "g N"], diagonal: Float[Tensor, " g"], grid: Int4Grid) -> _GroupFit:
    """Return the anchors and shares of least Σ ((w_j - q_j) / U_jj)², chosen row by row."""
    if grid.rule in ("signed", "searched"):
        candidates = [_largest(group, group), _largest(-group, group)]
    else:
        candidates = [_choose_anchors(group, grid)]
    best, best_share = candidates[0], group.new_full(group.shape[1:], int4.SHARES[0])
    least, errors = torch.full_like(best_share, torch.inf), torch.empty_like(group)
    for anchors, share in product(candidates, int4.SHARES):
        nearest = _fit(anchors, grid, share).nearest(group, errors)
        total = torch.sub(group, nearest, out=errors).div_(diagonal[:, None]).square_().sum(0)
        less = total < least
        best = _Anchors(*(torch.where(less, getattr(anchors, f.name), getattr(best, f.name)) for f in fields(best)))
        best_share = torch.where(less, share, best_share)
        least = torch.minimum(total, least)
    return _fit(best, grid, best_share).expand_over(len(group))


def _round_block(
    columns: Float[Tensor, "b N"],
    factor: Float[Tensor, "b b"],
    fitted: Sequence[_GroupFit],
    places: Sequence[tuple[int, int]],
    grid: Int4Grid,
) -> Float[Tensor, "b N"]:
    """Replace `columns` by the continuous ones; return each column's error / U_jj.

    `places` says which of `fitted` is a column's group, and which of the group's columns it is.
    """
    scales, low, high, fewest, most, anchored, anchors = (
        torch.stack([getattr(fitted[group], field.name)[j] for group, j in places]) for field in fields(_GroupFit)
    )
    errors, nearest = torch.empty_like(columns), torch.empty_like(columns)
    per_column = zip(columns, nearest, errors, scales, fewest, most, factor.diagonal(), strict=True)
    for j, (column, value, error, scale, least, largest, diagonal) in enumerate(per_column):
        if j:
            column.addmv_(errors[:j].mT, factor[:j, j], alpha=-1)
        torch.div(column, scale, out=value).round_().clamp_(least, largest).mul_(scale)
        torch.sub(column, value.to(grid.dtype), out=error).div_(diagonal)
    room = scales.abs_().mul_(0.0 if grid.rule == "searched" else CELL)
    inside = columns.sub_(nearest).clamp_(-room, room).add_(nearest)  # as near as keeps the codes
    columns.copy_(torch.where(anchored, anchors, inside.clamp_(low, high)))
    return errors


def _inverse_factor(
    hessian: Float[Tensor, "K K"], damping: float, *, act_order: bool, name: str
) -> tuple[Float[Tensor, "K K"], Int64[Tensor, " K"]]:
    """Return U, upper, with (H + damping · mean(diag H) · I)⁻¹ = UᵀU, in float32, and the order of its columns.

    H = RRᵀ with R upper comes from the Cholesky factor of H with its rows and columns in reverse; then U = R⁻¹.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise ModelError(f"{name} is given inputs that are inf or nan, and GPTQ cannot use them; check the model")
    order = torch.arange(len(hessian), device=hessian.device)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    reverse = hessian.double().flip(0, 1)
    mean = reverse.diagonal().mean().item() or 1.0  # all zero: no input at all, round to nearest
    for attempt in range(DAMPING_RETRIES + 1):
        damped = reverse.clone()
        damped.diagonal().add_(damping * 10**attempt * mean)
        lower, failed = _cholesky(damped)
        if not failed:
            return _inverse_of_upper(lower.flip(0, 1)).float(), order
    raise ModelError(
        f"{name}: GPTQ's matrix of inputs is not positive definite with {damping * 10**DAMPING_RETRIES:g} of its mean "
        "diagonal added; calibrate on more, or on other, sequences"
    )


def _cholesky(matrix: Tensor) -> tuple[Tensor, bool]:
    lower, failed = torch.linalg.cholesky_ex(matrix)  # pyright: ignore
    return lower, bool(failed)  # pyright: ignore


def _inverse_of_upper(matrix: Tensor) -> Tensor:
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(matrix, identity, upper=True)  # pyright: ignore
