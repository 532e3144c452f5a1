"""AWQ on our own grids: input channels are scaled before rounding, so that the ones that matter lose less of it.

Lin et al. 2023. A layer's inputs X are divided by s, by whatever produces them, and its weights multiplied:

    X Wᵀ = (X / s)(W s)ᵀ ≈ (X / s) Q(W s)ᵀ,    s = mean|X|^α / sqrt(max · min),    α in 0, 1/20, ... 19/20

The reference picks the α of least error in the output of the block around the layers, by running it for each α. Here
it is the error of the layers' own outputs, which their inputs' second moments H = XᵀX give exactly and without a second
look at the data: with E = W - Q(W s) / s,

    ‖X Eᵀ‖² = tr(E H Eᵀ)

α = 0 leaves the weights alone, so the chosen scales are never worse on these inputs than rounding to nearest. Then the
reference clips the ends of each group where that lessens the group's own share of the error, and so does `clip_groups`.

Shapes: N rows (output features), K columns (input features), g weights a group, G = K / g groups a row, b the columns
of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.quant.grid import Grid
from rayqd.quant.int4 import CODE_MAX, CODE_MIN, Int4Grid

if TYPE_CHECKING:
    from jaxtyping import Float

NUM_ALPHAS = 20
SHARES = tuple(1 - i / 20 for i in range(10))  # of a group's ends, 1 to 0.55

# Makes of the scales that are asked for the ones that the producer of the inputs, cast to its dtype, really has.
Realize = Callable[["Float[Tensor, ' K']"], "Float[Tensor, ' K']"]


@torch.no_grad()
def search_scales(
    weights: Sequence[Float[Tensor, "N K"]],
    second_moment: Float[Tensor, "K K"],
    magnitude: Float[Tensor, " K"],
    grid: Grid,
    realize: Realize = lambda scales: scales,
) -> Float[Tensor, " K"]:
    """Return the scales, in float32, of least Σ tr(E H Eᵀ) over `weights`, which are all given the same inputs.

    `second_moment` is XᵀX up to a factor, `magnitude` the mean of |X|. A weight is scaled in float32 and cast to its
    own dtype before it is rounded.
    """
    best, least = torch.ones_like(magnitude), torch.inf
    for asked in _candidates(magnitude):
        scales = realize(asked)
        error = sum(
            output_error(w.float() - _quantize_scaled(w, scales, grid), second_moment).sum().item() for w in weights
        )
        if error < least:
            best, least = scales, error
    return best


def scale_columns(weight: Float[Tensor, "N K"], scales: Float[Tensor, " K"]) -> Float[Tensor, "N K"]:
    """Return W s in the weight's dtype."""
    return (weight.float() * scales).to(weight.dtype)


def output_error(error: Float[Tensor, "N K"], second_moment: Float[Tensor, "K K"]) -> Float[Tensor, " N"]:
    """Return ‖X eᵀ‖² for each row e of `error`."""
    return (error @ second_moment).mul_(error).sum(-1)


@torch.no_grad()
def clip_groups(weight: Float[Tensor, "N K"], second_moment: Float[Tensor, "K K"], grid: Grid) -> Float[Tensor, "N K"]:
    """Return `weight` with each group's ends clipped to where e H eᵀ of the group alone is least.

    A group alone means the g columns' block of H, as the reference has it. A row whose whole error grows by that keeps
    its weights.
    """
    g = grid.quant_group_size
    groups = weight.float().reshape(len(weight), -1, g)
    blocks = _diagonal_blocks(second_moment, g)
    best, least = weight, groups.new_full(groups.shape[:2], torch.inf)
    for low, high in _ends(groups, grid):
        candidate = torch.minimum(torch.maximum(groups, low), high).reshape(weight.shape).to(weight.dtype)
        error = (weight.float() - grid.fake_quantize(candidate).float()).reshape(groups.shape).transpose(0, 1)
        total = torch.bmm(error, blocks).mul_(error).sum(-1).mT
        less = (total < least).repeat_interleave(g, 1)
        best, least = torch.where(less, candidate, best), torch.minimum(total, least)
    before, after = (
        output_error(weight.float() - grid.fake_quantize(w).float(), second_moment) for w in (weight, best)
    )
    return torch.where((after < before)[:, None], best, weight)


def _candidates(magnitude: Float[Tensor, " K"]) -> Iterator[Float[Tensor, " K"]]:
    """Yield s for each α; a channel without input is taken for the weakest that has one."""
    live = magnitude[magnitude > 0]
    magnitude = magnitude.float().clamp(min=float(live.min()) if len(live) else 1.0)
    for i in range(NUM_ALPHAS):
        scales = magnitude.pow(i / NUM_ALPHAS).clamp(min=1e-4)
        yield scales / (scales.max() * scales.min()).sqrt()


def _quantize_scaled(weight: Float[Tensor, "N K"], scales: Float[Tensor, " K"], grid: Grid) -> Float[Tensor, "N K"]:
    """Return Q(W s) / s."""
    return grid.fake_quantize(scale_columns(weight, scales)).float() / scales


def _ends(
    groups: Float[Tensor, "N G g"], grid: Grid
) -> Iterator[tuple[Float[Tensor, "N G 1"], Float[Tensor, "N G 1"]]]:
    """Yield the smallest and largest weight to allow.

    Where a scale has a sign, it reaches 8 steps to one side and 7 to the other; either side may be the long one.
    """
    smallest, largest = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    amax = torch.maximum(largest, -smallest)
    short = -CODE_MAX / CODE_MIN
    for share in SHARES:
        yield -share * amax, share * amax
        if isinstance(grid, Int4Grid) and grid.rule == "signed":
            yield share * smallest, -share * short * smallest
            yield -share * short * largest, share * largest


def _diagonal_blocks(matrix: Float[Tensor, "K K"], g: int) -> Float[Tensor, "G g g"]:
    num_blocks = len(matrix) // g
    return matrix.reshape(num_blocks, g, num_blocks, g).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
