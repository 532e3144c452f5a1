"""GPTQ's Triton kernel against plain torch: on a GPU if there is one, else in Triton's interpreter.

`test_gptq_columns` starts this with pytest in a process of its own (TRITON_INTERPRET=1 before anything imports Triton).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayqd.quant.gptq import columns_triton
from rayqd.quant.gptq.columns import ColumnScales, round_one_by_one
from tests.quant.gptq_blocks import make_exact_block, make_usual_block, targets_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of which the interpreter is made


def both(columns: Tensor, factor: Tensor, targets: ColumnScales, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Columns, nearest values and errors, of plain torch and of the kernel."""
    plain, own = columns.clone(), columns.clone()
    limits = targets.scales, targets.fewest, targets.most
    return [
        (plain, *round_one_by_one(plain, factor, targets, dtype)),
        (own, *columns_triton.round_columns(own, factor, *limits, dtype)),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_columns", "num_rows"), [(8, 1), (16, 37), (64, 40), (128, 17)])
def test_where_all_sums_are_exact_the_bits_are_the_same(num_columns: int, num_rows: int, dtype: torch.dtype) -> None:
    columns, scales, wide = make_exact_block(num_columns, num_rows)
    wide, factor = wide.to(DEVICE), wide.to(DEVICE)[:, :num_columns]
    plain, own = both(columns.to(DEVICE), factor, targets_of(scales.to(DEVICE)), dtype)
    assert factor.stride(0) > num_columns
    for expected, actual in zip(plain, own, strict=True):
        assert torch.equal(actual, expected)
    assert not torch.equal(own[0], columns.to(DEVICE))


def test_on_usual_weights_almost_every_code_is_the_same() -> None:
    """Where a column lies half-way between two codes the order of the sums decides, and then for its row."""
    columns, factor = make_usual_block()
    columns, targets = columns.to(DEVICE), targets_of(torch.full_like(columns, 0.3).to(DEVICE))
    plain, own = both(columns, factor.to(DEVICE), targets, torch.bfloat16)
    assert (plain[1] == own[1]).float().mean() > 0.999


def test_which_blocks_it_takes() -> None:
    assert [n for n in range(300) if columns_triton.supports(n)] == [2, 4, 8, 16, 32, 64, 128, 256]
