"""The INT4 grid's rounding in one pass over a weight on a CPU, compiled by Numba: the bits of `rayqd.quant.int4`.

Torch makes some fifteen passes of it, each a call. This kernel reads and writes a weight once, on any CPU and without a
C compiler; Numba keeps what it compiled where other processes and later runs find it.

Shapes: N rows (output features), K columns (input features), g weights a group.
"""

# The kernel is in the part of Python that Numba compiles, and Numba has no types:
# pyright: basic, reportUntypedFunctionDecorator=false, reportMissingTypeStubs=false

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from rayqd.quant.int4 import Int4Grid

_RULES = ("signed", "absmax", "asymmetric")
_SIGNED, _ABSMAX, _ASYMMETRIC = range(len(_RULES))
_DTYPES = (torch.float32, torch.bfloat16)

_CODE_MIN, _CODE_MAX = np.float32(-8.0), np.float32(7.0)
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# What this is added to and taken from again has been rounded to a whole number, half to even, if below 2^22 by size.
_TO_WHOLE = np.float32(1.5 * 2**23)

# Bits of float32. The order of positive floats is that of their bits, nan beyond infinity.
_SIGN, _MAGNITUDE = np.int32(-(2**31)), np.uint32(2**31 - 1)
_INFINITY, _NAN = np.uint32(0x7F800000), np.uint32(0x7FC00000)

# Python's lock is released, so that a caller's threads run side by side; a division by zero is IEEE's.
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


def supports(weight: Tensor, grid: Int4Grid) -> bool:
    """Return whether the kernel knows the grid's rule and dtype, and the weight's."""
    return weight.is_cpu and grid.rule in _RULES and grid.dtype in _DTYPES and weight.dtype in _DTYPES


def round_rows(
    weight: Float[Tensor, "N K"],
    delta: Float[Tensor, "N K"] | None,
    grid: Int4Grid,
    values: Float[Tensor, "N K"],
    inside: Bool[Tensor, "N K"],
) -> None:
    """Write Q(W + Δ) to `values`, in the grid's dtype, and to `inside` where the rounding was not clamped.

    Rows are contiguous; Δ is float32.
    """
    nothing = torch.empty(0, 0)
    _round_rows(
        *_split(weight),
        (nothing if delta is None else delta).numpy(),
        delta is not None,
        grid.quant_group_size,
        _RULES.index(grid.rule),
        *_split(values),
        inside.numpy(),
    )


def _split(tensor: Tensor) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return the tensor as float32, as the bits of bfloat16, and which of the two it is; the other is empty."""
    if tensor.dtype == torch.bfloat16:
        return np.empty((0, 0), np.float32), _view(tensor, ctypes.c_uint16), True
    return _view(tensor, ctypes.c_float), np.empty((0, 0), np.uint16), False


def _view(tensor: Tensor, number: type[ctypes.c_float] | type[ctypes.c_uint16]) -> np.ndarray:
    """Return the memory of a contiguous tensor. `Tensor.numpy` would forbid to free it, as FSDP does with weights."""
    return np.ctypeslib.as_array((number * tensor.numel()).from_address(tensor.data_ptr())).reshape(tensor.shape)


# Numba counts in 64 bits unless each result is given its type, and then LLVM takes half as many at a time. A slice
# of an array costs as much as a group's rounding, and so does looking for negative indices, which loops over a whole
# axis do without.
@_compiled
def _round_rows(
    weight, weight_bits, has_weight_bits, delta, has_delta, size, rule, values, value_bits, has_value_bits, inside
):
    num_rows, num_columns = inside.shape
    groups = np.empty((num_columns // size, size), np.float32)  # of one row
    groups_inside = np.empty(groups.shape, np.bool_)
    order, row = groups.view(np.int32), groups.reshape(-1)
    row_bits, row_inside = row.view(np.uint32), groups_inside.reshape(-1)
    for n in range(num_rows):
        if has_weight_bits:
            _widen(weight_bits[n], row_bits)
        else:
            row[:] = weight[n]
        if has_delta:
            _add(delta[n], row)
        _round_groups(groups, order, rule, has_value_bits, groups_inside)
        inside[n] = row_inside
        if has_value_bits:
            _narrow(row_bits, value_bits[n])
        else:
            values[n] = row


@_compiled
def _round_groups(groups, order, rule, has_value_bits, inside):
    """Replace the weights of a row by their values; `order` are their bits."""
    scratch = np.empty(1, np.float32)
    bits, signed_bits, halves = scratch.view(np.uint32), scratch.view(np.int32), scratch.view(np.uint16)
    for j in range(groups.shape[0]):
        positive, negative = np.int32(0), np.int32(0)  # bits of the largest weight, and of minus the smallest
        for k in range(groups.shape[1]):
            here = order[j, k]
            there = np.int32(here ^ _SIGN)
            positive = here if here > positive else positive
            negative = there if there > negative else negative
        signed_bits[0] = negative
        low = -scratch[0]
        signed_bits[0] = positive
        scratch[0] = _choose_scale(groups, j, low, scratch[0], rule)
        if has_value_bits:
            _narrow(bits, halves)
            bits[0] = np.uint32(np.uint32(halves[0]) << np.uint32(16))
        divisor = _ONE if scratch[0] == _ZERO else scratch[0]
        zero = _ZERO
        if rule == _ASYMMETRIC:
            zero = _clamp(_CODE_MIN - np.float32(np.rint(low / divisor)))
        for k in range(groups.shape[1]):
            quotient = np.float32(groups[j, k] / divisor)
            rounded = np.float32(np.float32(np.float32(quotient + _TO_WHOLE) - _TO_WHOLE) + zero)
            step = _clamp(rounded)
            inside[j, k] = step == rounded
            groups[j, k] = (step - zero) * divisor


@_compiled
def _choose_scale(groups, j, low, high, rule):
    """Return a group's scale before its rounding to 16 bits, given its smallest and largest weight, or 0."""
    if rule == _ABSMAX:
        return np.float32(np.float64(-low if -low > high or low != low else high) / 7.5)
    if rule == _ASYMMETRIC:
        return np.float32(np.float64(np.float32(high - low)) / 15.0)
    extreme = low if -low > high or low != low else high
    if -low == high:  # the first decides
        for k in range(groups.shape[1]):
            if abs(groups[j, k]) == high:
                extreme = groups[j, k]
                break
    return extreme / _CODE_MIN + _ZERO


@_compiled
def _clamp(step):
    """Return a step inside the codes; a nan as it is."""
    step = _CODE_MIN if step < _CODE_MIN else step
    return _CODE_MAX if step > _CODE_MAX else step


@_compiled
def _widen(bits, row):
    """Write the bits of float32 for those of bfloat16."""
    for k in range(bits.shape[0]):
        row[k] = np.uint32(np.uint32(bits[k]) << np.uint32(16))


@_compiled
def _add(delta, row):
    for k in range(delta.shape[0]):
        row[k] += delta[k]


@_compiled
def _narrow(row, bits):
    """Write the bits of bfloat16 for those of float32, rounded half to even."""
    for k in range(row.shape[0]):
        here = row[k]
        last = np.uint32(np.uint32(here >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(here + np.uint32(np.uint32(0x7FFF) + last))
        rounded = _NAN if np.uint32(here & _MAGNITUDE) > _INFINITY else rounded
        bits[k] = np.uint16(rounded >> np.uint32(16))
