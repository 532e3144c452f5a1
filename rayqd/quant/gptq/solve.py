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

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.quant import int4, numba_kernels
from rayqd.quant.gptq import group_scales
from rayqd.quant.gptq.columns import ColumnScales, expand, round_columns
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.row_parts import map_row_parts

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

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
    factor, order = _inverse_factor(hessian, damping, act_order=act_order, name=name)
    search = search_scales or grid.rule == "searched"
    by_numba = numba_kernels.are_worth_it(weight)
    solve = partial(
        _solve, factor=factor, order=order, grid=grid, act_order=act_order, search=search, by_numba=by_numba
    )
    if weight.device.type != "cpu":
        return solve(weight)
    return torch.cat(map_row_parts(lambda part: solve(weight[part]), len(weight)))


def _solve(
    weight: Float[Tensor, "N K"],
    factor: Float[Tensor, "K K"],
    order: Int64[Tensor, " K"],
    grid: Int4Grid,
    *,
    act_order: bool,
    search: bool,
    by_numba: bool,
) -> Float[Tensor, "N K"]:
    """Return the continuous weights of some rows, given U and the order of its columns."""
    g = grid.quant_group_size
    columns = weight.float().mT[order].contiguous()
    fixed = None
    if act_order:
        diagonal = torch.empty_like(factor.diagonal()).scatter_(0, order, factor.diagonal())
        original = weight.float().mT.contiguous().reshape(-1, g, len(weight))
        fixed = group_scales.choose(original, diagonal.reshape(-1, g), grid, search=search, by_numba=by_numba)
    for start in range(0, len(columns), g):
        block, end = columns[start : start + g], start + g
        here = factor[start:end, start:end]
        if fixed is not None:
            places = order[start:end]
            targets = expand(fixed, places // g, places % g)
        else:
            scales = group_scales.choose(block[None], here.diagonal()[None], grid, search=search, by_numba=by_numba)
            targets = expand(scales, torch.zeros_like(order[:g]), order[:g])
        nearest, errors = round_columns(block, here, targets, grid.dtype, by_numba=by_numba)
        _keep_inside_cells(block, nearest, targets, grid)
        columns[end:].addmm_(factor[start:end, end:].mT, errors, alpha=-1)
    return torch.empty_like(columns).index_copy_(0, order, columns).mT.contiguous()


def _keep_inside_cells(
    columns: Float[Tensor, "b N"], nearest: Float[Tensor, "b N"], targets: ColumnScales, grid: Int4Grid
) -> None:
    """Replace `columns` by what is as near to them as keeps the codes and the scales."""
    room = targets.scales.abs().mul_(0.0 if grid.rule == "searched" else CELL)
    inside = columns.sub_(nearest).clamp_(-room, room).add_(nearest)
    columns.copy_(torch.where(targets.anchored, targets.anchors, inside.clamp_(targets.low, targets.high)))


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
