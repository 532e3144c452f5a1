"""Q(W + s·BA) of one forward or backward pass: one kernel each.

That is our own kernel where it knows the grid; elsewhere a compiled one on a GPU, and plain torch on a CPU. All compute
the same bits from the same merged weight: what follows the merge has no product that could be fused into a sum, and
divisions are rounded as IEEE says. The merge itself is the GPU's own kernel's wherever that rounds, for the export too;
see `fake_quantize_triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._inductor import list_options

from rayqd.quant import Grid, numba_kernels
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.row_parts import map_row_parts

if TYPE_CHECKING:
    from rayqd.model.low_rank import LowRank

_RoundRows = Callable[[Tensor, Tensor | None, Int4Grid, Tensor, Tensor], None]

# Without the first a division is only approximate on a GPU, without the second a scale skips its rounding to 16 bits.
COMPILER_OPTIONS: dict[str, bool] = {"eager_numerics.division_rounding": True, "emulate_precision_casts": True}

# Weights that a CPU rounds at a time: half a dozen temporaries of them fit a core's cache.
_CHUNK_ELEMENTS = 1 << 16


def merge(weight: Tensor, low_rank: LowRank | None, grid: Grid) -> Tensor:
    """Return W, or W + s·BA, [N, K] in float32: exactly what the functions below round on this device."""
    if low_rank is not None and (kernel := _kernel(weight, grid)) is not None:
        return kernel(weight.detach(), low_rank, grid, with_merged=True).merged
    return _add(weight.detach(), _delta(low_rank))


def fake_quantize(weight: Tensor, low_rank: LowRank | None, grid: Grid) -> Tensor:
    """Return the values on the grid, [N, K] in the grid's dtype."""
    if (kernel := _kernel(weight, grid)) is not None:
        return kernel(weight.detach(), low_rank, grid).values
    return _for_device(weight, fake_quantize_sum)(weight.detach(), _delta(low_rank), grid)


def fake_quantize_with_mask(weight: Tensor, low_rank: LowRank | None, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Return the same, and on a CPU True where the rounding was not clamped, for the backward pass to keep."""
    if weight.is_cuda or _kernel(weight, grid) is not None:
        return fake_quantize(weight, low_rank, grid), None
    return _round(weight.detach(), _delta(low_rank), grid)


def fake_quantize_backward(
    weight: Tensor, low_rank: LowRank | None, grid: Grid, grad_values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the values once more, and the gradient that passes through the rounding: zero where it saturated.

    Takes `grad_values` over: on a GPU the gradient may be that very tensor, in its dtype; on a CPU it is float32.
    """
    if (kernel := _kernel(weight, grid)) is not None:
        grad_values = grad_values.contiguous()
        return kernel(weight.detach(), low_rank, grid, gradient=grad_values).values, grad_values
    backward = _for_device(weight, fake_quantize_sum_backward)
    return backward(weight.detach(), _delta(low_rank), grid, grad_values)


def fake_quantize_sum(weight: Tensor, delta: Tensor | None, grid: Grid) -> Tensor:
    """Return Q(W + Δ) without a GPU's kernel."""
    return _round(weight, delta, grid)[0]


def fake_quantize_sum_backward(
    weight: Tensor, delta: Tensor | None, grid: Grid, grad_values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Q(W + Δ) and the gradient of W + Δ in float32, without a GPU's kernel."""
    values, inside = _round(weight, delta, grid)
    return values, torch.where(inside, grad_values.float(), 0.0)


def _round(weight: Tensor, delta: Tensor | None, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return Q(W + Δ), and True where the rounding was not clamped."""
    is_eager_cpu = weight.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_eager_cpu and isinstance(grid, Int4Grid):  # other grids share a scale between rows
        return _round_by_rows(weight, delta, grid)
    return grid.fake_quantize_with_mask(_add(weight, delta))


def _round_by_rows(weight: Tensor, delta: Tensor | None, grid: Int4Grid) -> tuple[Tensor, Tensor]:
    """Do what `_round` does, some rows a thread."""
    values = torch.empty_like(weight, dtype=grid.dtype)
    inside = torch.empty_like(weight, dtype=torch.bool)
    round_rows = _cpu_kernel(weight, grid) or _round_in_chunks

    def run(part: slice) -> None:
        round_rows(weight[part], None if delta is None else delta[part], grid, values[part], inside[part])

    map_row_parts(run, len(weight))
    return values, inside


def _round_in_chunks(weight: Tensor, delta: Tensor | None, grid: Int4Grid, values: Tensor, inside: Tensor) -> None:
    rows_at_once = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), rows_at_once):
        rows = slice(start, start + rows_at_once)
        total = _add(weight[rows], None if delta is None else delta[rows])
        values[rows], inside[rows] = grid.fake_quantize_with_mask(total)


def _cpu_kernel(weight: Tensor, grid: Int4Grid) -> _RoundRows | None:
    """Return our own kernel where it is worth compiling, for the grids that it knows."""
    if not numba_kernels.are_worth_it(weight):
        return None
    from rayqd.quant import int4_numba

    return int4_numba.round_rows if int4_numba.supports(weight, grid) else None


def _delta(low_rank: LowRank | None) -> Tensor | None:
    return None if low_rank is None else low_rank.delta_weight()


def _add(weight: Tensor, delta: Tensor | None) -> Tensor:
    return weight.float() if delta is None else weight.float() + delta


def _kernel(weight: Tensor, grid: Grid) -> Callable[..., Any] | None:
    """Return our own kernel, on a GPU whose tensor cores it can use, for the grids that it knows."""
    if not (weight.is_cuda and _has_tensor_cores(weight.device)):
        return None
    from rayqd.model import fake_quantize_triton

    return fake_quantize_triton.fake_quantize if fake_quantize_triton.supports(weight, grid) else None


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Whether it has them for TF32 products: NVIDIA's from Ampere (2020) on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _for_device(weight: Tensor, function: Callable[..., Any]) -> Callable[..., Any]:
    return _compile(function) if weight.is_cuda else function


@cache  # one kernel for all sizes of layers: the compiler would take a parameter's size for fixed, hence detach() above
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    if not COMPILER_OPTIONS.keys() <= set(list_options()):
        return function
    return torch.compile(function, dynamic=True, options={**COMPILER_OPTIONS})
