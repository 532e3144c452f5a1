"""Each group's scale, chosen before its columns are rounded, and what keeps it: the elements that decide it.

Shapes: N rows (output features), G groups, g weights a group, m elements that decide a scale (one; asymmetric: the
largest and the smallest), S candidates of the search. Weights are transposed, so that a column is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.quant import int4
from rayqd.quant.int4 import Int4Grid

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

# Rows that the search takes at once: with one candidate what a core's cache holds; a GPU takes all candidates.
_CPU_ROWS, _GPU_ROWS = 1024, 16384


@dataclass(frozen=True, slots=True)
class Anchors:
    """The elements that decide a group's scale; one that does not exist has the value 0."""

    places: Int64[Tensor, "*batch m N"]  # column in the group
    values: Float[Tensor, "*batch m N"]


@dataclass(frozen=True, slots=True)
class GroupScales:
    """Scales, and what their groups' elements may be without changing them."""

    scales: Float[Tensor, "*batch N"]  # 1 for a zero group
    low: Float[Tensor, "*batch N"]  # smallest and largest weight
    high: Float[Tensor, "*batch N"]
    fewest: Float[Tensor, "*batch N"]  # smallest and largest code - zero point
    most: Float[Tensor, "*batch N"]
    anchors: Anchors  # exact in the scales' dtype
    exist: Bool[Tensor, "*batch m N"]  # which of them there are
    steps: Float[Tensor, "*batch m N"]  # their codes - zero point


def choose(
    columns: Float[Tensor, "G g N"], diagonal: Float[Tensor, "G g"], grid: Int4Grid, *, search: bool, by_numba: bool
) -> GroupScales:
    """Return every group's scale, batch [G]: by the grid's rule, or of least Σ ((w_j - q_j) / U_jj)² row by row.

    `diagonal` holds U_jj. The search draws the deciding elements in, and where scales have a sign it tries both ends;
    `by_numba` with the CPU's kernel.
    """
    if not search:
        return _fit(_choose_anchors(columns, grid), grid)
    ends = [columns, -columns] if grid.rule in ("signed", "searched") else []
    found = [_largest(end, columns) for end in ends] or [_choose_anchors(columns, grid)]
    candidates = Anchors(
        torch.stack([anchors.places for anchors, _ in product(found, int4.SHARES)]),
        torch.stack([share * anchors.values for anchors, share in product(found, int4.SHARES)]),
    )
    squared_errors = _squared_errors_by_numba if by_numba else _squared_errors
    best = squared_errors(columns, diagonal, _fit(candidates, grid)).argmin(0)[None, :, None]
    best = best.expand(1, *candidates.values.shape[1:])
    return _fit(Anchors(candidates.places.gather(0, best)[0], candidates.values.gather(0, best)[0]), grid)


def _fit(anchors: Anchors, grid: Int4Grid) -> GroupScales:
    """Return the scales that the grid's rule takes from the anchors."""
    exist = anchors.values != 0
    values = anchors.values.to(grid.dtype).float()
    rule = "signed" if grid.rule == "searched" else grid.rule
    rows = values.mT.flatten(0, -2)
    scales, zero_points = int4.choose_scales(rows, rule=rule, quant_group_size=rows.shape[-1], scale_dtype=grid.dtype)
    shape = (*values.shape[:-2], values.shape[-1])
    scales = torch.where(scales == 0, 1.0, scales.float()).reshape(shape)
    zeros = torch.zeros_like(scales) if zero_points is None else zero_points.float().reshape(shape)
    low, high = values.amin(-2).clamp(max=0), values.amax(-2).clamp(min=0)
    if zero_points is None:
        high = torch.maximum(high, -low)
        low = -high

    def steps(values: Tensor) -> Tensor:
        least, most = (end - zeros.unsqueeze(-2) for end in (int4.CODE_MIN, int4.CODE_MAX))
        return (values / scales.unsqueeze(-2)).round_().clamp(least, most)

    ends = steps(torch.stack([low, high], -2))  # the other way round where the scale is negative
    kept = Anchors(anchors.places, values)
    return GroupScales(scales, low, high, ends.amin(-2), ends.amax(-2), kept, exist, steps(values))


def _choose_anchors(columns: Float[Tensor, "G g N"], grid: Int4Grid) -> Anchors:
    """Return the elements that decide the scale under the grid's rule: the extreme, or the smallest and the largest."""
    if grid.rule == "asymmetric":
        largest, smallest = _largest(columns, columns), _largest(-columns, columns)
        places = torch.cat([largest.places, smallest.places], -2)
        return Anchors(places, torch.cat([largest.values, smallest.values], -2))
    return _largest(columns.abs(), columns)


def _largest(sizes: Float[Tensor, "G g N"], columns: Float[Tensor, "G g N"]) -> Anchors:
    """Return the element of a group's largest size, the first of equals; none when that is not above zero."""
    largest, places = sizes.max(-2, keepdim=True)
    return Anchors(places, torch.where(largest > 0, columns.gather(-2, places), 0.0))


def _squared_errors(
    columns: Float[Tensor, "G g N"], diagonal: Float[Tensor, "G g"], fits: GroupScales
) -> Float[Tensor, "S G N"]:
    """Return Σ ((w_j - q_j) / U_jj)² of each candidate, batch [S, G]; some candidates and rows of a group at once."""
    num_candidates, num_groups, num_rows = fits.scales.shape
    errors = torch.empty_like(fits.scales)
    at_once, rows_at_once = (num_candidates, _GPU_ROWS) if columns.is_cuda else (1, _CPU_ROWS)
    for group, first, start in product(
        range(num_groups), range(0, num_candidates, at_once), range(0, num_rows, rows_at_once)
    ):
        part = slice(first, first + at_once), group, slice(start, start + rows_at_once)
        weights = columns[group, :, part[2]]
        squares = _round_to(weights, fits, part).sub_(weights).square_()
        precision = diagonal[group].square().reciprocal().expand(len(squares), 1, -1)
        errors[part] = torch.bmm(precision, squares).squeeze(1)
    return errors


def _squared_errors_by_numba(
    columns: Float[Tensor, "G g N"], diagonal: Float[Tensor, "G g"], fits: GroupScales
) -> Float[Tensor, "S G N"]:
    from rayqd.quant.gptq import rows_numba

    def errors(group: int) -> Tensor:
        candidates = (fits.scales, fits.fewest, fits.most, fits.anchors.places, fits.exist, fits.steps)
        precision = diagonal[group].square().reciprocal()
        return rows_numba.squared_errors(columns[group], precision, *(x[:, group].contiguous() for x in candidates))

    return torch.stack([errors(group) for group in range(len(columns))], 1)


def _round_to(
    columns: Float[Tensor, "g N"], fits: GroupScales, part: tuple[slice, int, slice]
) -> Float[Tensor, "S g N"]:
    """Return the nearest values under some candidates, of anchors those that they keep, before any cast."""
    scales, fewest, most = (x[part].unsqueeze(1) for x in (fits.scales, fits.fewest, fits.most))
    values = torch.div(columns, scales).round_().clamp_(fewest, most).mul_(scales)
    candidates, group, rows = part
    for m in range(fits.steps.shape[2]):
        anchor = candidates, group, slice(m, m + 1), rows
        place = fits.anchors.places[anchor]
        kept = torch.where(fits.exist[anchor], fits.steps[anchor] * scales, values.gather(1, place))
        values.scatter_(1, place, kept)
    return values
