"""The weights of one forward or backward pass, rounded: plain torch on a CPU, one compiled kernel each on a GPU.

Both compute the same bits: the low-rank product is a matrix product of its own, what follows has no product that a
compiler could fuse into a sum, and divisions are rounded as IEEE says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._inductor import list_options

from rayqd.quant import Grid

# Without the first a division is only approximate on a GPU, without the second a scale skips its rounding to 16 bits.
_COMPILER_OPTIONS: dict[str, Any] = {"eager_numerics.division_rounding": True, "emulate_precision_casts": True}


def low_rank_product(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """s·BA in float32, [N, K]; s is multiplied in first, so that adding W is one rounding."""
    return (scaling * b.float()) @ a.float()


def merged(weight: Tensor, delta: Tensor | None) -> Tensor:
    """W, or W + s·BA, in float32."""
    return weight.float() if delta is None else weight.float() + delta


def rounded(weight: Tensor, delta: Tensor | None, grid: Grid) -> Tensor:
    """The values on the grid, [N, K] in the grid's dtype."""
    return _on(weight, _rounded)(weight.detach(), delta, grid)


def rounded_backward(weight: Tensor, delta: Tensor | None, grid: Grid, grad_values: Tensor) -> tuple[Tensor, Tensor]:
    """The values once more, and the gradient that passes through the rounding, in float32: zero where it saturated."""
    return _on(weight, _rounded_backward)(weight.detach(), delta, grid, grad_values)


def _rounded(weight: Tensor, delta: Tensor | None, grid: Grid) -> Tensor:
    return grid.fake_quantize_with_mask(merged(weight, delta))[0]


def _rounded_backward(weight: Tensor, delta: Tensor | None, grid: Grid, grad_values: Tensor) -> tuple[Tensor, Tensor]:
    values, inside = grid.fake_quantize_with_mask(merged(weight, delta))
    return values, torch.where(inside, grad_values.float(), 0.0)


def _on(weight: Tensor, function: Callable[..., Any]) -> Callable[..., Any]:
    return _compiled(function) if weight.is_cuda else function


@cache  # one kernel for all sizes of layers: the compiler would take a parameter's size for fixed, hence detach() above
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    if not _COMPILER_OPTIONS.keys() <= set(list_options()):
        return function
    return torch.compile(function, dynamic=True, options=_COMPILER_OPTIONS)
