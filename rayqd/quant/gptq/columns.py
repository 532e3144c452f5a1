"""The column recursion inside a block: every column is rounded, and makes up for the errors of those before it.

Shapes: b columns of a block, N rows (output features). Weights are transposed, so that a column is contiguous.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rayqd.quant.gptq.group_scales import GroupScales

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

# Columns whose errors are taken off one by one; off the block's others all of theirs together, as one product.
_SUB_BLOCK = 16


class ColumnScales(NamedTuple):
    """A column's scale and limits, and which of its rows decide their group's scale."""

    scales: Float[Tensor, "b N"]
    low: Float[Tensor, "b N"]  # smallest and largest weight
    high: Float[Tensor, "b N"]
    fewest: Float[Tensor, "b N"]  # smallest and largest code - zero point; of an anchor, its own
    most: Float[Tensor, "b N"]
    anchored: Bool[Tensor, "b N"]  # whether it is an anchor
    anchors: Float[Tensor, "b N"]  # its value if it is, else 0


def expand(groups: GroupScales, group: Int64[Tensor, " b"], place: Int64[Tensor, " b"]) -> ColumnScales:
    """Return the scales of columns, given the group of each, batch [G] of `groups`, and its place in the group."""
    fewest, most = groups.fewest[group], groups.most[group]
    anchored = torch.zeros_like(fewest, dtype=torch.bool)
    anchors = torch.zeros_like(fewest)
    for m in range(groups.steps.shape[1]):
        here = (groups.anchors.places[group, m] == place[:, None]) & groups.exist[group, m]
        steps = groups.steps[group, m]
        fewest, most = torch.where(here, steps, fewest), torch.where(here, steps, most)
        anchors = torch.where(here, groups.anchors.values[group, m], anchors)
        anchored |= here
    return ColumnScales(groups.scales[group], groups.low[group], groups.high[group], fewest, most, anchored, anchors)


def round_columns(
    columns: Float[Tensor, "b N"],
    factor: Float[Tensor, "b b"],
    targets: ColumnScales,
    dtype: torch.dtype,
    *,
    by_numba: bool,
) -> tuple[Float[Tensor, "b N"], Float[Tensor, "b N"]]:
    """Return the nearest values, before their cast to `dtype`, and each column's error / U_jj; changes `columns`.

    `by_numba`: with the CPU's kernel. `columns` become the weights as they were when their turn came.
    """
    if columns.is_cuda and find_spec("triton") is not None:
        from rayqd.quant.gptq import columns_triton

        if columns_triton.supports(len(columns)):
            return columns_triton.round_columns(columns, factor, targets.scales, targets.fewest, targets.most, dtype)
    if by_numba and dtype != torch.float16:
        from rayqd.quant.gptq import rows_numba

        return rows_numba.round_columns(columns, factor, targets.scales, targets.fewest, targets.most, dtype)
    return round_one_by_one(columns, factor, targets, dtype)


def round_one_by_one(
    columns: Float[Tensor, "b N"], factor: Float[Tensor, "b b"], targets: ColumnScales, dtype: torch.dtype
) -> tuple[Float[Tensor, "b N"], Float[Tensor, "b N"]]:
    """Do what `round_columns` does, in plain torch."""
    errors, nearest = torch.empty_like(columns), torch.empty_like(columns)
    per_column = list(zip(columns, nearest, errors, targets.scales, targets.fewest, targets.most, strict=True))
    diagonal = factor.diagonal()
    for first in range(0, len(columns), _SUB_BLOCK):
        end = min(first + _SUB_BLOCK, len(columns))
        for j in range(first, end):
            column, value, error, scale, fewest, most = per_column[j]
            if j > first:
                column.addmv_(errors[first:j].mT, factor[first:j, j], alpha=-1)
            torch.div(column, scale, out=value).round_().clamp_(fewest, most).mul_(scale)
            torch.sub(column, value.to(dtype), out=error).div_(diagonal[j])
        columns[end:].addmm_(factor[first:end, end:].mT, errors[first:end], alpha=-1)
    return nearest, errors
