"""The column recursion of one block in one launch on a GPU, where one column at a time would be seven.

Shapes: b columns of a block, N rows (output features). Each program holds all columns of some rows in registers.
"""

# The kernel is in Triton's language, which looks like Python and whose types are none of Python's:
# pyright: basic, reportGeneralTypeIssues=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

# 2,048 weights a program: 16 registers a thread of four warps.
TILE, NUM_WARPS = 2048, 4

# Triton's interpreter, for tests on a CPU: TRITON_INTERPRET=1 before the first import of triton.
INTERPRETED = triton.knobs.runtime.interpret


def supports(num_columns: int) -> bool:
    """Return whether the kernel takes blocks of so many columns; others are rounded one column after the other."""
    return 2 <= num_columns <= 256 and num_columns & (num_columns - 1) == 0


def round_columns(
    columns: Float[Tensor, "b N"],
    factor: Float[Tensor, "b b"],
    scales: Float[Tensor, "b N"],
    fewest: Float[Tensor, "b N"],
    most: Float[Tensor, "b N"],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "b N"], Float[Tensor, "b N"]]:
    """Do what `columns.round_columns` does, see there; all but `factor` is contiguous."""
    num_columns, num_rows = columns.shape
    nearest, errors = torch.empty_like(columns), torch.empty_like(columns)
    block_rows = max(16, TILE // num_columns)
    with torch.cuda.device_of(columns):  # none is, where the interpreter runs this on a CPU
        _kernel[(triton.cdiv(num_rows, block_rows),)](
            columns,
            factor.contiguous(),
            scales,
            fewest,
            most,
            nearest,
            errors,
            columns.new_empty(0, dtype=dtype),
            num_rows,
            NUM_COLUMNS=num_columns,
            BLOCK_ROWS=block_rows,
            CAST_TRUNCATES=INTERPRETED,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
    return nearest, errors


@triton.jit
def _kernel(
    columns,
    factor,
    scales,
    fewest,
    most,
    nearest,
    errors,
    of_dtype,
    num_rows,
    NUM_COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    CAST_TRUNCATES: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = rows < num_rows
    places = tl.arange(0, NUM_COLUMNS)
    offsets = places[:, None] * num_rows + rows[None, :]  # of a block, far below 2^31
    tile = tl.load(columns + offsets, mask=here[None, :], other=0.0)
    for j in range(NUM_COLUMNS):
        column = tl.sum(tl.where(places[:, None] == j, tile, 0.0), 0)
        at = j * num_rows + rows
        scale = tl.load(scales + at, mask=here, other=1.0)
        steps = _round_half_even(tl.math.div_rn(column, scale))
        steps = tl.maximum(steps, tl.load(fewest + at, mask=here, other=0.0))
        value = tl.minimum(steps, tl.load(most + at, mask=here, other=0.0)) * scale
        row = tl.load(factor + j * NUM_COLUMNS + places)
        diagonal = tl.load(factor + j * NUM_COLUMNS + j)
        stored = _cast(value, of_dtype.dtype.element_ty, CAST_TRUNCATES).to(tl.float32)
        error = tl.math.div_rn(column - stored, diagonal + tl.zeros_like(column))
        tl.store(nearest + at, value, mask=here)
        tl.store(errors + at, error, mask=here)
        tile -= tl.where(places > j, row, 0.0)[:, None] * error[None, :]
    tl.store(columns + offsets, tile, mask=here[None, :])


@triton.jit
def _round_half_even(x):
    """Round |x| < 2^22; what is larger stays large, for the clamp. From 2^23 on float32 holds whole numbers only."""
    return (x + 12582912.0) - 12582912.0  # 1.5 · 2^23


@triton.jit
def _cast(x, DTYPE: tl.constexpr, CAST_TRUNCATES: tl.constexpr):
    """Cast, rounding half to even. A GPU's cast does that; that of Triton's interpreter cuts bfloat16 off."""
    if CAST_TRUNCATES and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)
