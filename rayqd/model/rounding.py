"""The weights of one forward or backward pass, rounded: plain torch on a CPU, one kernel each on a GPU.

On a GPU that is our own kernel where it knows the grid, else a compiled one. All compute the same bits from the same
merged weight: what follows the merge has no product that could be fused into a sum, and divisions are rounded as IEEE
says. The merge itself is the own kernel's wherever that rounds, for the export too; see `rounding_triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._inductor import list_options

from rayqd.quant import Grid

if TYPE_CHECKING:
    from rayqd.model.low_rank import LowRank

# Without the first a division is only approximate on a GPU, without the second a scale skips its rounding to 16 bits.
_COMPILER_OPTIONS: dict[str, Any] = {"eager_numerics.division_rounding": True, "emulate_precision_casts": True}


def merged(weight: Tensor, low_rank: LowRank | None, grid: Grid) -> Tensor:
    """W, or W + s·BA, in float32: exactly what the functions below round on this device."""
    if low_rank is not None and (kernel := _kernel(weight, grid)) is not None:
        return kernel(weight.detach(), low_rank, grid, with_merged=True).merged
    return _merged(weight.detach(), _product(low_rank))


def rounded(weight: Tensor, low_rank: LowRank | None, grid: Grid) -> Tensor:
    """The values on the grid, [N, K] in the grid's dtype."""
    if (kernel := _kernel(weight, grid)) is not None:
        return kernel(weight.detach(), low_rank, grid).values
    return _on(weight, _rounded)(weight.detach(), _product(low_rank), grid)


def rounded_backward(
    weight: Tensor, low_rank: LowRank | None, grid: Grid, grad_values: Tensor
) -> tuple[Tensor, Tensor]:
    """The values once more, and the gradient that passes through the rounding: zero where it saturated.

    Takes `grad_values` over: on a GPU the gradient may be that very tensor, in its dtype; on a CPU it is float32.
    """
    if (kernel := _kernel(weight, grid)) is not None:
        grad_values = grad_values.contiguous()
        return kernel(weight.detach(), low_rank, grid, gradient=grad_values).values, grad_values
    return _on(weight, _rounded_backward)(weight.detach(), _product(low_rank), grid, grad_values)


def _product(low_rank: LowRank | None) -> Tensor | None:
    return None if low_rank is None else low_rank.product()


def _merged(weight: Tensor, delta: Tensor | None) -> Tensor:
    return weight.float() if delta is None else weight.float() + delta


def _rounded(weight: Tensor, delta: Tensor | None, grid: Grid) -> Tensor:
    return grid.fake_quantize_with_mask(_merged(weight, delta))[0]


def _rounded_backward(weight: Tensor, delta: Tensor | None, grid: Grid, grad_values: Tensor) -> tuple[Tensor, Tensor]:
    values, inside = grid.fake_quantize_with_mask(_merged(weight, delta))
    return values, torch.where(inside, grad_values.float(), 0.0)


def _kernel(weight: Tensor, grid: Grid) -> Callable[..., Any] | None:
    """Our own kernel, on a GPU whose tensor cores it can use, for the grids that it knows."""
    if not (weight.is_cuda and _has_tensor_cores(weight.device)):
        return None
    from rayqd.model import rounding_triton

    return rounding_triton.rounded if rounding_triton.supports(weight, grid) else None


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """For TF32 products: NVIDIA's from Ampere (2020) on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def _on(weight: Tensor, function: Callable[..., Any]) -> Callable[..., Any]:
    return _compiled(function) if weight.is_cuda else function


@cache  # one kernel for all sizes of layers: the compiler would take a parameter's size for fixed, hence detach() above
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    if not _COMPILER_OPTIONS.keys() <= set(list_options()):
        return function
    return torch.compile(function, dynamic=True, options=_COMPILER_OPTIONS)
