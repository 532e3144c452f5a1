"""Q(W + s·BA) for the INT4 grid in one pass over W on an NVIDIA GPU: the adapter's product stays in registers.

Shapes: N rows (outputs), K columns (inputs), r rank, g weights a group. W is [N, K], A is [r, K], B is [N, r].

Traffic is 2 bytes read and 2 written a weight; A and B come from the L2 cache. One compiled kernel serves the forward
pass, the backward pass and `merged_weight`, told apart by flags at run time. So the float32 weights that are quantized
for export have the bits of those that the forward pass rounded, whatever order a tensor core adds its products in; on
another device (a CPU reads the checkpoint) that order, and with it the last bit, may be another one.

After the merge all is float32 as `quant.int4` has it, with its bits: divisions round as IEEE says, no product is fused
into a sum, 16-bit values are rounded half to even.
"""

# The kernels are in Triton's language, which looks like Python and whose types are none of Python's:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rayqd.model.low_rank import LowRank
from rayqd.quant import Grid
from rayqd.quant.int4 import Int4Grid

# A tile of 32 x 128 weights: whole groups of every usual size, 256 bytes of a row, 32 registers a thread for each
# tensor alive. On an H200 64 rows (a warp group's product takes that many) need a fifth more time, 16 rows a quarter.
BLOCK_ROWS, BLOCK_COLUMNS, NUM_WARPS = 32, 128, 4

# Of the rank, at a time: A's and B's tiles take 24 KiB of shared memory, and as much again for what tf32x3 splits off.
BLOCK_RANK = 32

# tf32x3: three products of the tensor cores, as accurate as float32. "ieee" is float32 without them, some 14 ms a pass
# over a 4B model at rank 32; "tf32" keeps 11 bits of A and B.
PRECISION = "tf32x3"

GROUP_SIZES = (8, 16, 32, 64, 128, 256)
RULES = ("signed", "absmax", "asymmetric")

# Triton's interpreter, for tests on a CPU: TRITON_INTERPRET=1 before the first import of triton.
INTERPRETED = triton.knobs.runtime.interpret


class FakeQuantized(NamedTuple):
    """What one call of the kernel wrote."""

    values: Tensor  # [N, K] in the grid's dtype
    merged: Tensor  # [N, K] float32 if asked for, else empty


def supports(weight: Tensor, grid: Grid) -> bool:
    """Return whether `fake_quantize` knows the grid; for others there is the compiled path."""
    if not isinstance(grid, Int4Grid) or grid.rule not in RULES or not weight.is_floating_point():
        return False
    return grid.quant_group_size in GROUP_SIZES and weight.shape[1] % grid.quant_group_size == 0


def fake_quantize(
    weight: Tensor,
    low_rank: LowRank | None,
    grid: Int4Grid,
    *,
    with_merged: bool = False,
    gradient: Tensor | None = None,
    precision: str = PRECISION,
) -> FakeQuantized:
    """Return Q(W + s·BA), or Q(W).

    `gradient`, [N, K] and contiguous, is set to zero in place where the code saturated.
    """
    weight = weight.contiguous()
    num_rows, num_columns = weight.shape
    values = torch.empty_like(weight, dtype=grid.dtype)
    merged = weight.new_empty(weight.shape if with_merged else 0, dtype=torch.float32)
    block_columns = max(BLOCK_COLUMNS, grid.quant_group_size)
    block_rows = BLOCK_ROWS * BLOCK_COLUMNS // block_columns
    rank = 0 if low_rank is None else len(low_rank.a)
    a, b, scaling = (merged, merged, 0.0) if low_rank is None else low_rank
    blocks = (triton.cdiv(num_columns, block_columns), triton.cdiv(num_rows, block_rows))
    with torch.cuda.device_of(weight):  # none is, where the interpreter runs this on a CPU
        _kernel[blocks](
            weight,
            a.contiguous(),
            b.contiguous(),
            scaling,
            values,
            merged,
            values if gradient is None else gradient,
            num_rows,
            num_columns,
            int(with_merged),
            int(gradient is not None),
            RANK=rank,
            RULE=grid.rule,
            GROUP=grid.quant_group_size,
            BLOCK_ROWS=block_rows,
            BLOCK_COLUMNS=block_columns,
            BLOCK_RANK=min(BLOCK_RANK, max(16, triton.next_power_of_2(rank))),
            PRECISION=precision,
            CAST_TRUNCATES=INTERPRETED,
            num_warps=NUM_WARPS,
            num_stages=1,
            enable_fp_fusion=False,
        )
    return FakeQuantized(values, merged)


@triton.jit(do_not_specialize=["with_merged", "with_gradient"])
def _kernel(
    weight,
    a,
    b,
    scaling,
    values,
    merged,
    gradient,
    num_rows,
    num_columns,
    with_merged,
    with_gradient,
    RANK: tl.constexpr,
    RULE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    PRECISION: tl.constexpr,
    CAST_TRUNCATES: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    rows, first_row = tl.arange(0, BLOCK_ROWS), tl.program_id(1) * BLOCK_ROWS
    has_row, has_column = (first_row + rows < num_rows)[:, None], (columns < num_columns)[None, :]
    here = has_row & has_column
    start_of_tile = first_row.to(tl.int64) * num_columns
    offsets = rows[:, None] * num_columns + columns[None, :]
    weights = tl.load(weight + start_of_tile + offsets, mask=here, other=0.0).to(tl.float32)
    if RANK > 0:
        product = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for start in range(0, RANK, BLOCK_RANK):
            ranks = start + tl.arange(0, BLOCK_RANK)
            has_rank = ranks < RANK
            b_places = first_row.to(tl.int64) * RANK + rows[:, None] * RANK + ranks[None, :]
            a_places = ranks[:, None] * num_columns + columns[None, :]
            b_tile = tl.load(b + b_places, mask=has_row & has_rank[None, :], other=0.0).to(tl.float32)
            a_tile = tl.load(a + a_places, mask=has_rank[:, None] & has_column, other=0.0).to(tl.float32)
            product = tl.dot(b_tile, a_tile, product, input_precision=PRECISION)
        # The factor keeps the compiler from taking W for the sum that the product starts at: W is added last, once.
        weights += scaling * product
    if with_merged:
        tl.store(merged + start_of_tile + offsets, weights, mask=here)
    groups = tl.reshape(weights, [BLOCK_ROWS * BLOCK_COLUMNS // GROUP, GROUP])
    quantized, inside = _quantize_groups(groups, RULE, GROUP, values.dtype.element_ty, CAST_TRUNCATES)
    tl.store(values + start_of_tile + offsets, tl.reshape(quantized, [BLOCK_ROWS, BLOCK_COLUMNS]), mask=here)
    if with_gradient:  # only the few saturated ones are written, none is read
        saturated = tl.reshape(inside, [BLOCK_ROWS, BLOCK_COLUMNS]) == 0
        tl.store(gradient + start_of_tile + offsets, 0.0, mask=here & saturated)


@triton.jit
def _quantize_groups(
    groups, RULE: tl.constexpr, GROUP: tl.constexpr, DTYPE: tl.constexpr, CAST_TRUNCATES: tl.constexpr
):
    """Return values in DTYPE of [G, g] float32, and 1 where the code was not clamped; quant.int4 has the arithmetic."""
    zero_points = 0.0
    if RULE == "signed":
        divisor = _divisor(_signed_extreme(groups, GROUP) * -0.125, DTYPE, CAST_TRUNCATES)
    elif RULE == "absmax":
        divisor = _divisor(tl.math.div_rn(tl.max(tl.abs(groups), 1), 7.5), DTYPE, CAST_TRUNCATES)
    else:
        low, high = tl.minimum(tl.min(groups, 1), 0.0), tl.maximum(tl.max(groups, 1), 0.0)
        divisor = _divisor(tl.math.div_rn(high - low, 15.0), DTYPE, CAST_TRUNCATES)
        zero_points = _clamp(-8.0 - _round_half_even(tl.math.div_rn(low, divisor)))[:, None]
    codes = _round_half_even(_divide(groups, divisor)) + zero_points
    steps = _clamp(codes)
    inside = (steps == codes).to(tl.int8)
    return _cast((steps - zero_points) * divisor[:, None], DTYPE, CAST_TRUNCATES), inside


@triton.jit
def _signed_extreme(groups, GROUP: tl.constexpr):
    """Return the element of largest magnitude in each group, the first of equals."""
    magnitudes = tl.abs(groups)
    largest = tl.max(magnitudes, 1)
    places = 2 * tl.arange(0, GROUP)[None, :] + (groups < 0).to(tl.int32)  # the lowest bit is the sign
    first = tl.min(tl.where(magnitudes == largest[:, None], places, 2 * GROUP), 1)
    return tl.where((first & 1) == 1, -largest, largest)


@triton.jit
def _divisor(scales, DTYPE: tl.constexpr, CAST_TRUNCATES: tl.constexpr):
    """Return scales rounded to DTYPE, in float32 again; a zero group divides by 1 instead."""
    stored = _cast(scales, DTYPE, CAST_TRUNCATES).to(tl.float32)
    return tl.where(stored == 0, 1.0, stored)


@triton.jit
def _divide(groups, divisor):
    """Return groups / divisor[:, None] as IEEE rounds it, where that is 2^-12 or more and its code is not 0.

    A third of the instructions of one division each: the group's reciprocal, correctly rounded, and two Newton steps,
    whose remainders are exact. The first leaves less than a unit in the last place, and from there the second one gives
    the nearest number (Markstein 1990; Muller et al., Handbook of Floating-Point Arithmetic, 4.7). The factor, a power
    of two, keeps all of it clear of overflow and of numbers that are not normal.
    """
    far = tl.where(tl.abs(divisor) > 1.1529215e18, 5.421011e-20, 1.0)  # 2^60, 2^-64
    factor = tl.where(tl.abs(divisor) < 8.6736174e-19, 1.8446744e19, far)  # 2^-60, 2^64
    inverse = tl.math.div_rn(1.0, divisor * factor)[:, None]
    negative = (-divisor * factor)[:, None]
    scaled = groups * factor[:, None]
    quotients = scaled * inverse
    quotients = tl.fma(tl.fma(negative, quotients, scaled), inverse, quotients)
    return tl.fma(tl.fma(negative, quotients, scaled), inverse, quotients)


@triton.jit
def _round_half_even(x):
    """Round |x| < 2^22, zeros to +0.0. From 2^23 to 2^24 float32 holds whole numbers only, so adding rounds."""
    return (x + 12582912.0) - 12582912.0  # 1.5 · 2^23


@triton.jit
def _clamp(codes):
    """Clamp to -8..7; nan stays nan."""
    return tl.minimum(tl.maximum(codes, -8.0, tl.PropagateNan.ALL), 7.0, tl.PropagateNan.ALL)


@triton.jit
def _cast(x, DTYPE: tl.constexpr, CAST_TRUNCATES: tl.constexpr):
    """Cast, rounding half to even. A GPU's cast does that; that of Triton's interpreter cuts bfloat16 off."""
    if CAST_TRUNCATES and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)
