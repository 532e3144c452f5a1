"""The INT4 rules against numbers worked out by hand, a scalar loop, and properties that must hold for any weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.quant import Grid, Quantized, make_grid

RULES = ["signed", "absmax", "asymmetric"]
INT_VIEW = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def grid_of(rule: str, *, group_size: int = 32, scale_dtype: torch.dtype = torch.bfloat16) -> Grid:
    return make_grid(QuantConfig.model_validate({"rule": rule, "group_size": group_size}), scale_dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INT_VIEW[tensor.dtype])


def random_weight(num_rows: int = 24, num_columns: int = 128, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_rows, num_columns, generator=generator) * 0.05
    weight[0] = 0.0
    return weight.to(dtype)


def scalar_loop(weight: torch.Tensor, rule: str, group_size: int) -> Quantized:
    """The three rules element by element in numpy float32 scalars, with float16 scales and Python's half-even round."""
    num_rows, num_columns = weight.shape
    codes = np.zeros((num_rows, num_columns), np.int8)
    scales = np.zeros((num_rows, num_columns // group_size), np.float16)
    zeros = np.zeros_like(scales, np.int8)
    for n in range(num_rows):
        for k in range(0, num_columns, group_size):
            group = [np.float32(w) for w in weight[n, k : k + group_size].tolist()]
            low, high = min(*group, np.float32(0)), max(*group, np.float32(0))
            extreme = max(group, key=abs)  # the first of equals
            scale = {
                "signed": extreme / np.float32(-8),
                "absmax": abs(extreme) / np.float32(7.5),
                "asymmetric": (high - low) / np.float32(15),
            }[rule]
            scales[n, k // group_size] = scale
            divisor = np.float32(np.float16(scale))
            if divisor == 0:
                codes[n, k : k + group_size] = zeros[n, k // group_size] = -8 if rule == "asymmetric" else 0
                continue
            zero = min(7, max(-8, -8 - round(low / divisor))) if rule == "asymmetric" else 0
            zeros[n, k // group_size] = zero
            codes[n, k : k + group_size] = [min(7, max(-8, round(w / divisor) + zero)) for w in group]
    zero_points = torch.from_numpy(zeros) if rule == "asymmetric" else None
    return Quantized(torch.from_numpy(codes), torch.from_numpy(scales), zero_points)


def test_signed_group_worked_out_by_hand() -> None:
    # The extreme is -1.6, so the scale is -1.6 / -8 = 0.2, in bfloat16 0x3E4D = 205/1024 = 0.2001953125.
    #   w              -1.6    0.3    0.1   1.6    0.7    -0.5    0   0.05
    #   w / scale      -7.99   1.499  0.500- 7.99  3.497  -2.498  0   0.250      (0.1 / 0.2001953125 = 0.49951)
    #   code           -8      1      0     8 -> 7 3      -2      0   0
    #   code * scale   -1.6016 0.2002 0     1.4014 0.6006 -0.4004 0   0
    #   in bfloat16, 8 significant bits: 7 * 205/1024 = 1435/1024 = 179.4/128 -> 179/128; 3 * 205/1024 = 153.75/256
    #   -> 154/256; the others are 205 times a power of two.
    weight = torch.tensor([[-1.6, 0.3, 0.1, 1.6, 0.7, -0.5, 0.0, 0.05]])
    grid = grid_of("signed", group_size=8)
    quantized = grid.quantize(weight)
    assert bits(quantized.scales).tolist() == [[0x3E4D]]
    assert quantized.codes.tolist() == [[-8, 1, 0, 7, 3, -2, 0, 0]]
    assert quantized.zero_points is None
    expected = [-205 / 128, 205 / 1024, 0.0, 179 / 128, 154 / 256, -205 / 512, 0.0, 0.0]
    assert grid.dequantize(quantized).tolist() == [expected]
    _, inside = grid.fake_quantize_with_mask(weight)
    assert inside.tolist() == [[True, True, True, False, True, True, True, True]]


def test_signed_scale_is_negative_where_the_first_extreme_is_positive() -> None:
    # +1 comes before -1: scale = 1 / -8 = -0.125; 1 / -0.125 = -8, -1 / -0.125 = 8 -> 7, 0.5 / -0.125 = -4.
    quantized = grid_of("signed", group_size=8).quantize(torch.tensor([[0.5, 1.0, -1.0, 0, 0, 0, 0, 0]]))
    assert quantized.scales.tolist() == [[-0.125]]
    assert quantized.codes.tolist() == [[-4, -8, 7, 0, 0, 0, 0, 0]]


def test_asymmetric_group_worked_out_by_hand() -> None:
    # min -1, max 2.75: scale = 3.75 / 15 = 0.25; zero = -8 - (-1 / 0.25) = -4; code = w / 0.25 - 4.
    # Half a step goes to the even multiple: 0.125 / 0.25 = 0.5 -> 0, 0.375 / 0.25 = 1.5 -> 2.
    weight = torch.tensor([[-1.0, 2.75, 0.0, 0.125, 0.375, 1.0, -0.5, 0.25]])
    grid = grid_of("asymmetric", group_size=8)
    quantized = grid.quantize(weight)
    assert quantized.scales.tolist() == [[0.25]]
    assert quantized.zero_points is not None
    assert quantized.zero_points.tolist() == [[-4]]
    assert quantized.codes.tolist() == [[-8, 7, -4, -4, -2, 0, -6, -3]]
    assert grid.dequantize(quantized).tolist() == [[-1.0, 2.75, 0.0, 0.0, 0.5, 1.0, -0.5, 0.25]]


@pytest.mark.parametrize("rule", RULES)
def test_codes_and_scales_equal_a_scalar_loop(rule: str) -> None:
    weight = random_weight()
    weight[1, :32] = torch.tensor([3.0, -3.0] * 16)  # ties between extremes of both signs
    weight[2, :32] = torch.arange(32) / 8.0  # one sign only, and exact halves of a step
    grid = grid_of(rule, scale_dtype=torch.float16)
    expected, actual = scalar_loop(weight, rule, 32), grid.quantize(weight)
    assert torch.equal(actual.scales, expected.scales)
    assert torch.equal(actual.codes, expected.codes)
    if expected.zero_points is not None:
        assert actual.zero_points is not None
        assert torch.equal(actual.zero_points, expected.zero_points)


def test_half_steps_go_to_the_even_code_on_every_float16_scale() -> None:
    # Each of the 1024 significands; a half step of 11 bits is exact in float32, but times 1 / scale it would not be.
    scales = 1 + torch.arange(1024) / 1024
    steps = torch.tensor([-8.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    quantized = grid_of("signed", group_size=8, scale_dtype=torch.float16).quantize(scales[:, None] * steps)
    assert torch.equal(quantized.scales.float(), scales[:, None])
    assert quantized.codes.unique(dim=0).tolist() == [[-8, 0, 2, 2, 4, 4, 6, 6]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_fake_quantized_values_have_the_bits_of_the_stored_codes(
    rule: str, scale_dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    weight = random_weight(dtype=weight_dtype)
    grid = grid_of(rule, scale_dtype=scale_dtype)
    values, inside = grid.fake_quantize_with_mask(weight)
    stored = grid.dequantize(grid.quantize(weight))
    assert values.dtype == stored.dtype == scale_dtype
    assert inside.shape == values.shape == weight.shape
    assert torch.equal(bits(values), bits(stored))
    assert torch.equal(bits(grid.fake_quantize(weight)), bits(stored))


@pytest.mark.parametrize("rule", RULES)
def test_a_weight_that_is_not_contiguous_is_quantized_as_its_copy(rule: str) -> None:
    transposed = random_weight(128, 24).T
    grid = grid_of(rule)
    assert torch.equal(grid.quantize(transposed).codes, grid.quantize(transposed.contiguous()).codes)
    assert torch.equal(grid.fake_quantize(transposed), grid.fake_quantize(transposed.contiguous()))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-9, -1e-9])
def test_group_whose_scale_rounds_to_zero_becomes_positive_zeros(rule: str, tiny: float) -> None:
    # The least float16 above zero is 6e-8; 1e-9 / 7.5 rounds to 0.
    weight = random_weight()
    weight[3, 32:64] = tiny
    grid = grid_of(rule, scale_dtype=torch.float16)
    quantized = grid.quantize(weight)
    assert bits(quantized.scales)[3, 1] == 0
    for values in (grid.dequantize(quantized), grid.fake_quantize(weight)):
        assert bits(values)[3, 32:64].tolist() == [0] * 32
        assert bool(values[3, 64:].any())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inf_and_nan_are_refused_by_name(rule: str, bad: float) -> None:
    weight = random_weight()
    weight[5, 40] = bad
    with pytest.raises(
        ModelError, match=r"model\.layers\.3\.mlp\.up_proj holds 1 values that are inf or nan out of 3072"
    ):
        grid_of(rule).quantize(weight, name="model.layers.3.mlp.up_proj")


@pytest.mark.parametrize("rule", RULES)
def test_nan_reaches_the_fake_quantized_values(rule: str) -> None:
    weight = random_weight()
    weight[5, 40] = float("nan")
    assert not bool(torch.isfinite(grid_of(rule).fake_quantize(weight)).all())


def test_weights_too_large_for_the_storage_dtype_are_refused() -> None:
    # 1e6 / 8 = 125,000 is above float16's 65,504.
    with pytest.raises(ModelError, match="too large for scales in float16"):
        grid_of("signed", scale_dtype=torch.float16).quantize(torch.full((1, 32), 1e6))


def test_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quant\.group_size=32 does not divide a weight's 48 input features"):
        grid_of("signed").quantize(torch.ones(2, 48))


weights = arrays(np.float32, (3, 32), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)
storage = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def normal_scales(quantized: Quantized, group_size: int) -> torch.Tensor:
    """Where scales have their full precision, spread over the weights: bool [N, K]."""
    normal = quantized.scales.abs() >= torch.finfo(quantized.scales.dtype).smallest_normal
    return normal.repeat_interleave(group_size, 1)


@given(weight=weights, scale_dtype=storage)
@settings(max_examples=60, deadline=None)
def test_signed_rule_is_idempotent(weight: torch.Tensor, scale_dtype: torch.dtype) -> None:
    grid = grid_of("signed", group_size=16, scale_dtype=scale_dtype)
    quantized = grid.quantize(weight)
    once = grid.dequantize(quantized)
    again = grid.dequantize(grid.quantize(once))
    where = normal_scales(quantized, 16)
    assert torch.equal(again[where], once[where])


@given(weight=weights, rule=st.sampled_from(RULES), scale_dtype=storage)
@settings(max_examples=100, deadline=None)
def test_error_is_half_a_step_and_where_clamped_one_step(
    weight: torch.Tensor, rule: str, scale_dtype: torch.dtype
) -> None:
    grid = grid_of(rule, group_size=16, scale_dtype=scale_dtype)
    quantized = grid.quantize(weight)
    values, inside = grid.fake_quantize_with_mask(weight)
    assert quantized.codes.dtype == torch.int8
    assert quantized.codes.shape == weight.shape
    assert quantized.scales.shape == (3, 2)
    assert quantized.scales.dtype == values.dtype == scale_dtype
    assert quantized.quant_group_size == 16
    assert bool(((quantized.codes >= -8) & (quantized.codes <= 7)).all())
    # In steps. The slack: a value has at most 15 steps, each rounded once in the scale and once in the value.
    step = quantized.scales.double().abs().repeat_interleave(16, 1)
    error = (weight.double() - values.double()).abs()
    bound = step * (torch.where(inside, 0.5, 1.0) + 16 * torch.finfo(scale_dtype).eps)
    where = normal_scales(quantized, 16)
    assert bool((error <= bound)[where].all())


@given(weight=weights, rule=st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
def test_gradient_is_straight_through_and_zero_exactly_where_clamped(weight: torch.Tensor, rule: str) -> None:
    grid = grid_of(rule, group_size=16, scale_dtype=torch.float16)
    quantized = grid.quantize(weight)
    divisor = quantized.scales.float().repeat_interleave(16, 1)
    zero = torch.tensor(0) if quantized.zero_points is None else quantized.zero_points.repeat_interleave(16, 1)
    expected = torch.ones(weight.shape)
    for n, k in np.ndindex(*weight.shape):
        if divisor[n, k] != 0:
            code = round(np.float32(weight[n, k].item()) / np.float32(divisor[n, k].item())) + int(
                zero.expand(3, 32)[n, k]
            )
            expected[n, k] = float(-8 <= code <= 7)
    upstream = torch.arange(1.0, 97.0).view(3, 32)
    trained = weight.clone().requires_grad_()
    (grid.fake_quantize(trained).float() * upstream).sum().backward()
    assert trained.grad is not None
    assert trained.grad.dtype == torch.float32
    assert torch.equal(trained.grad, upstream * expected)


def test_bits_per_weight_count_scales_and_zero_points() -> None:
    assert grid_of("signed", group_size=128).bits_per_weight == 4 + 16 / 128
    assert grid_of("asymmetric", group_size=32).bits_per_weight == 4 + 16 / 32 + 4 / 32
    assert grid_of("absmax", group_size=64, scale_dtype=torch.float32).bits_per_weight == 4 + 32 / 64
