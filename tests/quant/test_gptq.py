"""GPTQ against the textbook's update with an explicit inverse hessian, in float64, and what its output must survive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayqd.errors import ModelError
from rayqd.quant import numba_kernels
from rayqd.quant.gptq import gptq
from tests.quant.gptq_textbook import (
    G,
    grid_of,
    hessian_of,
    problem,
    scale_of_least_error,
    textbook,
    textbook_in_order,
)

RULES = ["signed", "absmax", "asymmetric"]
DTYPES = [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float16, torch.float32))]


@pytest.fixture(autouse=True, scope="module", params=["torch", "numba"])
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """What runs the inner loops on a CPU, whatever the size of a weight."""
    if request.param == "numba":
        pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_kernels, "FEWEST_WEIGHTS", 0 if request.param == "numba" else 2**62)
        yield


@pytest.mark.parametrize("rule", RULES)
def test_codes_and_scales_equal_the_textbook(rule: str) -> None:
    weight, inputs = problem()
    hessian = hessian_of(inputs)
    quantized = grid_of(rule).quantize(gptq(weight, hessian, grid_of(rule), damping=0.05, search_scales=False))
    codes, scales = textbook(weight, hessian, rule, 0.05)
    assert torch.equal(quantized.scales.double(), scales)
    assert torch.equal(quantized.codes.long(), codes)


def test_with_act_order_codes_and_scales_equal_the_textbooks_in_that_order() -> None:
    weight, inputs = problem()
    inputs = inputs * torch.linspace(0.2, 3, 64).roll(21)
    hessian, grid = hessian_of(inputs), grid_of("signed")
    start = gptq(weight, hessian, grid, damping=0.05, act_order=True, search_scales=False)
    quantized = grid.quantize(start)
    codes, scales = textbook_in_order(weight, hessian, 0.05)
    assert torch.equal(quantized.scales.double(), scales)
    assert torch.equal(quantized.codes.long(), codes)
    in_place = grid.quantize(gptq(weight, hessian, grid, damping=0.05, search_scales=False))
    assert not torch.equal(quantized.codes, in_place.codes)


def test_act_order_rounds_the_column_of_the_largest_input_to_nearest() -> None:
    weight, inputs = problem()
    weight = weight.to(torch.bfloat16).float()
    inputs[:, 40] *= 20
    grid = grid_of("signed")
    start = gptq(weight, hessian_of(inputs), grid, act_order=True, search_scales=False)
    assert torch.equal(grid.quantize(start).codes[:, 40], grid.quantize(weight).codes[:, 40])


@pytest.mark.parametrize("rule", RULES)
def test_the_layers_output_error_is_below_round_to_nearests(rule: str) -> None:
    weight, inputs = problem()
    grid = grid_of(rule)

    def error(start: torch.Tensor) -> float:
        return (inputs @ (weight - grid.fake_quantize(start).float()).mT).square().sum().item()

    # 0.42 to 0.53 over eight seeds and three rules
    assert error(gptq(weight, hessian_of(inputs), grid)) < 0.6 * error(weight)
    assert error(gptq(weight, hessian_of(inputs), grid, act_order=True)) < 0.7 * error(weight)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_searching_for_scales_lessens_the_output_error_on_average(rule: str) -> None:
    grid = grid_of(rule)
    searched = unsearched = 0.0
    for seed in range(8):
        weight, inputs = problem(num_columns=128, seed=seed)
        for search_scales in (False, True):
            start = gptq(weight, hessian_of(inputs), grid, search_scales=search_scales)
            error = (inputs @ (weight - grid.fake_quantize(start).float()).mT).square().sum().item()
            searched += search_scales * error
            unsearched += (not search_scales) * error
    assert searched < unsearched


@pytest.mark.parametrize("rule", ["signed", "absmax"])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_search_takes_the_scale_of_least_error(rule: str, act_order: bool) -> None:
    weight, _ = problem()
    grid = grid_of(rule)
    # independent inputs: no column makes up for another
    scales = grid.quantize(gptq(weight, torch.eye(64), grid, act_order=act_order)).scales
    expected = [[scale_of_least_error(group, rule) for group in row.split(G)] for row in weight]
    assert scales.double().tolist() == expected


@pytest.mark.parametrize("rule", [*RULES, "searched"])
@pytest.mark.parametrize("scale_dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.floats(0.01, 30),
    shift=st.sampled_from([0.0, 0.02, 0.1]),
    search_scales=st.booleans(),
    act_order=st.booleans(),
)
def test_codes_and_scales_survive_the_cast_to_the_models_dtype(
    rule: str, scale_dtype: torch.dtype, seed: int, size: float, shift: float, search_scales: bool, act_order: bool
) -> None:
    weight, inputs = problem(seed=seed)
    weight, grid = size * (weight + shift), grid_of(rule, scale_dtype)
    continuous = gptq(weight, hessian_of(inputs), grid, search_scales=search_scales, act_order=act_order)
    before, after = grid.quantize(continuous), grid.quantize(continuous.to(scale_dtype))
    assert torch.equal(before.scales, after.scales)
    assert torch.equal(before.codes, after.codes)


@pytest.mark.parametrize("rule", RULES)
def test_weights_lie_spread_inside_their_cells(rule: str) -> None:
    weight, inputs = problem(num_rows=64)
    grid = grid_of(rule)
    continuous = gptq(weight, hessian_of(inputs), grid)
    quantized = grid.quantize(continuous)
    scales = quantized.scales.float().abs().repeat_interleave(G, 1)
    offset = (continuous - grid.dequantize(quantized).float()) / scales
    assert 0.25 < offset.std() < 0.33  # evenly spread over (-0.5, 0.5) it is 1 / sqrt(12) = 0.289


@pytest.mark.parametrize("rule", RULES)
def test_independent_inputs_give_round_to_nearest(rule: str) -> None:
    weight, _ = problem()
    weight = weight.to(torch.bfloat16)
    grid = grid_of(rule)
    expected, actual = grid.quantize(weight), grid.quantize(gptq(weight, 3 * torch.eye(64), grid, search_scales=False))
    assert torch.equal(actual.scales, expected.scales)
    assert torch.equal(actual.codes, expected.codes)


def test_a_column_without_input_is_rounded_to_nearest_and_leaves_the_others_alone() -> None:
    weight, inputs = problem()
    weight = weight.to(torch.bfloat16).float()
    weight[:, 5] *= 0.1  # never a group's extreme
    inputs[:, 5] = 0
    grid = grid_of("signed")
    quantized = grid.quantize(gptq(weight, hessian_of(inputs), grid, search_scales=False))
    assert torch.equal(quantized.codes[:, 5], grid.quantize(weight).codes[:, 5])
    weight[:, 5] *= -1
    other = grid.quantize(gptq(weight, hessian_of(inputs), grid, search_scales=False))
    assert not torch.equal(other.codes[:, 5], quantized.codes[:, 5])
    assert torch.equal(other.codes[:, 6:], quantized.codes[:, 6:])


def test_no_input_at_all_gives_round_to_nearest() -> None:
    weight, _ = problem()
    weight = weight.to(torch.bfloat16)
    grid = grid_of("signed")
    start = gptq(weight, torch.zeros(64, 64), grid, search_scales=False)
    assert torch.equal(grid.quantize(start).codes, grid.quantize(weight).codes)


@pytest.mark.parametrize("rule", RULES)
def test_zero_groups_stay_zero(rule: str) -> None:
    grid = grid_of(rule)
    weight, inputs = problem()
    weight[3] = 0
    weight[4, :G] = 0
    values = grid.fake_quantize(gptq(weight, hessian_of(inputs), grid))
    assert values[3].count_nonzero() == 0
    assert values[4, :G].count_nonzero() == 0
    assert values[4, G:].count_nonzero() > 0


def test_damping_is_raised_until_the_hessian_is_positive_definite() -> None:
    weight, inputs = problem()
    hessian = hessian_of(inputs)
    eigenvalues, mean = torch.linalg.eigvalsh(hessian), hessian.diagonal().mean()
    # smallest eigenvalue -0.05 · mean, as rounding errors make it, only more: 0.01 does not lift it, 0.1 does
    indefinite = hessian - (eigenvalues[0] + 0.05 * mean) * torch.eye(64)
    raised = gptq(weight, indefinite, grid_of("signed"), damping=0.01)
    share = 0.1 * float(indefinite.diagonal().mean() / mean)
    shifted = indefinite + 0.1 * indefinite.diagonal().mean() * torch.eye(64)
    assert share > 0.05
    torch.testing.assert_close(raised, gptq(weight, shifted, grid_of("signed"), damping=0.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (-torch.eye(64), r"down_proj.*not positive definite with 0.001 of.*calibrate on more"),
        (torch.full((64, 64), torch.nan), r"down_proj.*inf or nan"),
    ],
)
def test_a_hopeless_hessian_is_one_clear_error_that_names_the_layer(hessian: torch.Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gptq(problem()[0], hessian, grid_of("signed"), damping=1e-6, name="layers.3.mlp.down_proj")


def test_a_weight_that_is_not_finite_is_one_clear_error_that_names_the_layer() -> None:
    weight, inputs = problem()
    weight[2, 40] = torch.inf
    with pytest.raises(ModelError, match=r"down_proj holds 1 values that are inf or nan out of"):
        gptq(weight, hessian_of(inputs), grid_of("signed"), name="layers.3.mlp.down_proj")
