"""GPTQ's inner loops on a CPU, compiled by Numba: the search of a group's scale, and the recursion over its columns.

In torch the search makes six passes of the group for each of fourteen candidates, and every column is four calls.

Shapes: N rows (output features), g weights a group and b columns of a block, S candidates of the search, m elements
that decide a scale. Weights are transposed, so that a column is contiguous, and loops run along its rows.
"""

# The kernels are in the part of Python that Numba compiles, and Numba has no types:
# pyright: basic, reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

# What this is added to and taken from again has been rounded to a whole number, half to even, if below 2^22 by size.
_TO_WHOLE = np.float32(1.5 * 2**23)
_ZERO = np.float32(0.0)

# Python's lock is released, so that a caller's threads run side by side; a division by zero is IEEE's.
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def squared_errors(
    columns: Float[Tensor, "g N"],
    precision: Float[Tensor, " g"],
    scales: Float[Tensor, "S N"],
    fewest: Float[Tensor, "S N"],
    most: Float[Tensor, "S N"],
    places: Int64[Tensor, "S m N"],
    exist: Bool[Tensor, "S m N"],
    steps: Float[Tensor, "S m N"],
) -> Float[Tensor, "S N"]:
    """Return Σ precision_j (w_j - q_j)² under each candidate; the elements that decide a scale keep their steps."""
    errors = torch.empty_like(scales)
    _squared_errors(*(t.numpy() for t in (columns, precision, scales, fewest, most, places, exist, steps, errors)))
    return errors


def round_columns(
    columns: Float[Tensor, "b N"],
    factor: Float[Tensor, "b b"],
    scales: Float[Tensor, "b N"],
    fewest: Float[Tensor, "b N"],
    most: Float[Tensor, "b N"],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "b N"], Float[Tensor, "b N"]]:
    """Do what `rayqd.quant.gptq.columns.round_columns` does, for values in float32 or bfloat16."""
    errors, nearest = torch.empty_like(columns), torch.empty_like(columns)
    arrays = [t.numpy() for t in (columns, factor.contiguous(), scales, fewest, most, nearest, errors)]
    _round_columns(*arrays, to_bfloat16=dtype == torch.bfloat16)
    return nearest, errors


# Numba counts in 64 bits, and in float64, unless each result is given its type.
@_compiled
def _squared_errors(columns, precision, scales, fewest, most, places, exist, steps, errors):
    for s in range(scales.shape[0]):
        for n in range(scales.shape[1]):
            errors[s, n] = _ZERO
        for j in range(columns.shape[0]):
            weight_of = precision[j]
            for n in range(scales.shape[1]):
                value = _nearest(columns[j, n], scales[s, n], fewest[s, n], most[s, n])
                difference = value - columns[j, n]
                errors[s, n] += weight_of * (difference * difference)
        for m in range(places.shape[1]):
            for n in range(scales.shape[1]):
                if exist[s, m, n]:
                    j = places[s, m, n]
                    weight, scale = columns[j, n], scales[s, n]
                    kept = steps[s, m, n] * scale - weight
                    other = _nearest(weight, scale, fewest[s, n], most[s, n]) - weight
                    errors[s, n] += precision[j] * (kept * kept - other * other)


@_compiled
def _round_columns(columns, factor, scales, fewest, most, nearest, errors, to_bfloat16):
    bits = errors.view(np.uint32)
    for j in range(columns.shape[0]):
        diagonal = factor[j, j]
        for n in range(columns.shape[1]):
            value = _nearest(columns[j, n], scales[j, n], fewest[j, n], most[j, n])
            nearest[j, n] = value
            errors[j, n] = value
        if to_bfloat16:
            for n in range(columns.shape[1]):
                last = np.uint32(np.uint32(bits[j, n] >> np.uint32(16)) & np.uint32(1))
                rounded = np.uint32(bits[j, n] + np.uint32(np.uint32(0x7FFF) + last))
                bits[j, n] = np.uint32(rounded & np.uint32(0xFFFF0000))
        for n in range(columns.shape[1]):
            errors[j, n] = (columns[j, n] - errors[j, n]) / diagonal
        for i in range(j + 1, columns.shape[0]):
            share = factor[j, i]
            for n in range(columns.shape[1]):
                columns[i, n] -= share * errors[j, n]


@_compiled
def _nearest(weight, scale, fewest, most):
    """Return the nearest value on the grid, before its cast to 16 bits."""
    steps = np.float32(np.float32(np.float32(weight / scale) + _TO_WHOLE) - _TO_WHOLE)
    steps = fewest if steps < fewest else steps
    steps = most if steps > most else steps
    return np.float32(steps * scale)
