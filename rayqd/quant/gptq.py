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
    """Weights in float32 that `grid` rounds to GPTQ's codes and scales, also after a cast to the grid's scale dtype.

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

    def fit(group: Tensor, start: int) -> _Fitted:
        if search_scales:
            return _searched(group, diagonal[start : start + g], grid)
        return _fit(group, _deciding(group, grid), grid)

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
class _Fitted:
    """A group's scale, and what a weight of the group may be without changing it."""

    scales: Float[Tensor, " N"]  # 1 for a zero group
    anchored: Bool[Tensor, "g N"]  # the elements that decide the scale
    anchors: Float[Tensor, "g N"]  # their values, exact in the scales' dtype; else 0
    low: Float[Tensor, " N"]  # smallest and largest weight
    high: Float[Tensor, " N"]
    fewest: Float[Tensor, "g N"]  # smallest and largest code - zero point: of an anchor, its own
    most: Float[Tensor, "g N"]

    def nearest_steps(self, columns: Float[Tensor, "g N"]) -> Float[Tensor, "g N"]:
        return (columns / self.scales).round_().clamp_(self.fewest, self.most)

    def nearest(self, column: Float[Tensor, " N"], j: int) -> Float[Tensor, " N"]:
        """The values of the codes that the group's column `j` gets, before they are cast."""
        return (column / self.scales).round_().clamp_(self.fewest[j], self.most[j]).mul_(self.scales)

    def continuous(
        self, column: Float[Tensor, " N"], nearest: Float[Tensor, " N"], j: int, cell: float
    ) -> Float[Tensor, " N"]:
        """As near to the group's column `j` as keeps these codes and the scale."""
        room = cell * self.scales.abs()
        inside = nearest + (column - nearest).clamp_(-room, room)
        return torch.where(self.anchored[j], self.anchors[j], inside.clamp_(self.low, self.high))


def _fit(group: Float[Tensor, "g N"], anchored: Bool[Tensor, "g N"], grid: Int4Grid, share: float = 1.0) -> _Fitted:
    """The scale that the grid's rule takes from the `anchored` elements, multiplied by `share`."""
    anchors = torch.where(anchored, share * group, 0.0).to(grid.dtype).float()
    rule = "signed" if grid.rule == "searched" else grid.rule
    scales, zero_points = int4.choose_scales(
        anchors.mT, rule=rule, quant_group_size=grid.quant_group_size, scale_dtype=grid.dtype
    )
    scales = torch.where(scales == 0, 1.0, scales.float()).squeeze(-1)
    zeros = torch.zeros_like(scales) if zero_points is None else zero_points.float().squeeze(-1)
    low, high = anchors.amin(0).clamp(max=0), anchors.amax(0).clamp(min=0)
    if zero_points is None:
        high = torch.maximum(high, -low)
        low = -high

    def steps(values: Tensor) -> Tensor:
        return (values / scales).round_().clamp(int4.CODE_MIN - zeros, int4.CODE_MAX - zeros)

    ends = steps(torch.stack([low, high]))  # the other way round where the scale is negative
    own = steps(anchors)
    fewest, most = (torch.where(anchored, own, end) for end in (ends.amin(0), ends.amax(0)))
    return _Fitted(scales, anchored, anchors, low, high, fewest, most)


def _deciding(group: Float[Tensor, "g N"], grid: Int4Grid) -> Bool[Tensor, "g N"]:
    """The elements from which the grid's rule takes the scale: the extreme, or the smallest and the largest."""
    if grid.rule == "asymmetric":
        return _largest(group) | _largest(-group)
    return _largest(group.abs())


def _largest(group: Float[Tensor, "g N"]) -> Bool[Tensor, "g N"]:
    """The largest of a row's elements, the first of equals; none when none is above zero, which always has a code."""
    largest, where = group.max(0, keepdim=True)
    return torch.zeros_like(group, dtype=torch.bool).scatter_(0, where, largest > 0)


def _searched(group: Float[Tensor, "g N"], diagonal: Float[Tensor, " g"], grid: Int4Grid) -> _Fitted:
    """The fit of least Σ ((w_j - q_j) / U_jj)², row by row, over which elements decide the scale and their shares."""
    deciders = [_largest(group), _largest(-group)] if grid.rule in ("signed", "searched") else [_deciding(group, grid)]
    best: _Fitted | None = None
    least = group.new_full(group.shape[1:], torch.inf)
    for anchored, share in product(deciders, int4.SHARES):
        fitted = _fit(group, anchored, grid, share)
        errors = (group - fitted.nearest_steps(group).mul_(fitted.scales)).div_(diagonal[:, None])
        total = errors.square_().sum(0)
        best = fitted if best is None else _where(total < least, fitted, best)
        least = torch.minimum(total, least)
    assert best is not None
    return best


def _where(condition: Bool[Tensor, " N"], one: _Fitted, other: _Fitted) -> _Fitted:
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(_Fitted))
    return _Fitted(*(torch.where(condition, first, second) for first, second in pairs))


def _round_block(
    columns: Float[Tensor, "b N"],
    factor: Float[Tensor, "b b"],
    fitted: Sequence[_Fitted],
    places: Sequence[tuple[int, int]],
    grid: Int4Grid,
) -> Float[Tensor, "b N"]:
    """Replaces `columns` by the continuous ones; returns each column's error / U_jj.

    `places` says which of `fitted` is a column's group, and which of the group's columns it is.
    """
    cell = 0.0 if grid.rule == "searched" else CELL
    errors = torch.empty_like(columns)
    diagonal = factor.diagonal()
    for j, (group, place) in enumerate(places):
        if j:
            columns[j].addmv_(errors[:j].mT, factor[:j, j], alpha=-1)
        nearest = fitted[group].nearest(columns[j], place)
        torch.sub(columns[j], nearest.to(grid.dtype), out=errors[j]).div_(diagonal[j])
        columns[j] = fitted[group].continuous(columns[j], nearest, place, cell)
    return errors


def _inverse_factor(
    hessian: Float[Tensor, "K K"], damping: float, *, act_order: bool, name: str
) -> tuple[Float[Tensor, "K K"], Int64[Tensor, " K"]]:
    """U, upper, with (H + damping · mean(diag H) · I)⁻¹ = UᵀU, in float32; and the order in which it has the columns.

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
