"""The CPU's kernel against the grid in plain torch, bit for bit, on weights with everything that rounding can meet."""

from __future__ import annotations

import pytest
import torch

from rayqd.config.sections import QuantConfig
from rayqd.quant import make_grid
from rayqd.quant.int4 import Int4Grid, Rule

int4_numba = pytest.importorskip("rayqd.quant.int4_numba", reason="Numba is not installed")

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def awkward_weight(num_columns: int = 192) -> torch.Tensor:
    """Ties of both ends in either order, zero groups of both signs, one sign only, exact halves, all magnitudes."""
    weight = torch.randn(40, num_columns, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[0], weight[1] = 0.0, -0.0
    weight[2, :64] = torch.tensor([3.0, -3.0] * 32)
    weight[3, :64] = torch.tensor([-3.0, 3.0] * 32)
    weight[4], weight[5] = weight[4].abs(), -weight[5].abs()
    weight[6, :64] = torch.arange(64) / 8.0
    for row, power in enumerate((-45, -42, -40, -38, 30, 37), 7):  # subnormal numbers, and near the largest
        weight[row] *= 10.0**power
    return weight


@pytest.mark.parametrize("with_delta", [False, True], ids=["", "adapter"])
@pytest.mark.parametrize("weight_dtype", BITS, ids=str)
@pytest.mark.parametrize("grid_dtype", BITS, ids=str)
@pytest.mark.parametrize("rule", ["signed", "absmax", "asymmetric"])
def test_every_bit_is_that_of_the_grid_in_torch(
    rule: Rule, grid_dtype: torch.dtype, weight_dtype: torch.dtype, with_delta: bool
) -> None:
    grid = Int4Grid(64, grid_dtype, rule)
    weight = awkward_weight().to(weight_dtype)
    delta = awkward_weight().flip(1) / 7 if with_delta else None
    expected, expected_inside = grid.fake_quantize_with_mask(
        weight.float() if delta is None else weight.float() + delta
    )
    values, inside = torch.empty_like(weight, dtype=grid_dtype), torch.empty(weight.shape, dtype=torch.bool)
    int4_numba.round_rows(weight, delta, grid, values, inside)
    assert torch.equal(values.view(BITS[grid_dtype]), expected.view(BITS[grid_dtype]))
    assert torch.equal(inside, expected_inside)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), -float("nan")])
@pytest.mark.parametrize("rule", ["signed", "absmax", "asymmetric"])
def test_what_is_not_finite_never_becomes_a_number(rule: Rule, number: float) -> None:
    grid = Int4Grid(64, torch.bfloat16, rule)
    weight = awkward_weight()
    weight[20, 70] = number
    expected, _ = grid.fake_quantize_with_mask(weight)
    values, inside = torch.empty_like(weight, dtype=torch.bfloat16), torch.empty(weight.shape, dtype=torch.bool)
    int4_numba.round_rows(weight, None, grid, values, inside)
    assert torch.equal(values.isnan(), expected.isnan())
    assert values[20, 64:128].isnan().any()
    assert torch.equal(values[:20], expected[:20])


def test_only_what_the_kernel_knows_is_given_to_it() -> None:
    searched = make_grid(QuantConfig(group_size=64, rule="searched"), torch.bfloat16)
    signed = make_grid(QuantConfig(group_size=64), torch.float16)
    known = make_grid(QuantConfig(group_size=64), torch.bfloat16)
    weight = torch.zeros(2, 64)
    assert [int4_numba.supports(weight, grid) for grid in (searched, signed, known)] == [False, False, True]
    assert not int4_numba.supports(weight.half(), known)
    assert not int4_numba.supports(weight.to("meta"), known)
