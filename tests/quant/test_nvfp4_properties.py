"""What must hold of NVFP4 for any weight: values are the stored codes', order and error, and the gradient's formula."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayqd.quant.nvfp4 import E2M1, NVFP4Grid
from tests.quant.nvfp4_weights import bits, make, random_weight

weights = arrays(np.float32, (3, 32), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)
tensor_scales = st.sampled_from([None, 2.0**-8, 2.0**-4])  # 448 · 6 · 2^-8 = 10.5: most groups saturate
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(weight=weights, tensor_scale=tensor_scales, dtype=dtypes, bfloat16=st.booleans())
@settings(max_examples=100, deadline=None)
def test_fake_quantized_values_have_the_bits_of_the_stored_codes(
    weight: torch.Tensor, tensor_scale: float | None, dtype: torch.dtype, bfloat16: bool
) -> None:
    weight = weight.bfloat16() if bfloat16 else weight
    grid = make(dtype, tensor_scale)
    quantized = grid.quantize(weight)
    stored = grid.dequantize(quantized)
    values, inside = grid.fake_quantize_with_mask(weight)
    assert quantized.codes.dtype == torch.int8
    assert bool(((quantized.codes >= 0) & (quantized.codes < 16)).all())
    assert quantized.scales.dtype == torch.float8_e4m3fn
    assert quantized.scales.shape == (3, 2)
    assert values.dtype == stored.dtype == dtype
    assert inside.shape == values.shape == weight.shape
    assert torch.equal(bits(values), bits(stored))
    assert torch.equal(bits(grid.fake_quantize(weight)), bits(stored))


@given(weight=weights, tensor_scale=tensor_scales)
@settings(max_examples=60, deadline=None)
def test_bfloat16_holds_the_values_of_float32(weight: torch.Tensor, tensor_scale: float | None) -> None:
    quantized = make(torch.float32, tensor_scale).quantize(weight)
    exact = NVFP4Grid(torch.float32).dequantize(quantized)
    assert torch.equal(NVFP4Grid(torch.bfloat16).dequantize(quantized).float(), exact)


@given(weight=weights, tensor_scale=st.sampled_from([2.0**-8, 2.0**-4]))
@settings(max_examples=60, deadline=None)
def test_idempotent_under_one_tensor_scale(weight: torch.Tensor, tensor_scale: float) -> None:
    grid = make(torch.bfloat16, tensor_scale)
    once = grid.fake_quantize(weight)
    assert torch.equal(bits(grid.fake_quantize(once)), bits(once))


@given(weight=weights, tensor_scale=tensor_scales)
@settings(max_examples=60, deadline=None)
def test_larger_weights_of_a_group_have_larger_values(weight: torch.Tensor, tensor_scale: float | None) -> None:
    groups = weight.view(-1, 16).sort(-1).values.reshape(3, 32)
    values = make(torch.float32, tensor_scale).fake_quantize(groups)
    assert bool((values.view(-1, 16).diff(dim=-1) >= 0).all())


@given(weight=weights)
@settings(max_examples=60, deadline=None)
def test_error_is_half_a_step_and_nothing_saturates_under_its_own_tensor_scale(weight: torch.Tensor) -> None:
    grid = NVFP4Grid(torch.float32)
    quantized = grid.quantize(weight)
    values, inside = grid.fake_quantize_with_mask(weight)
    assert bool(inside.all())
    assert quantized.tensor_scale is not None
    # E2M1's steps are 0.5, 1 and 2 as the magnitude is below 2, below 4, or above; past 6 at most 6.375 for 6.
    scale = (quantized.scales.double() * quantized.tensor_scale).repeat_interleave(16, 1)
    quotients = weight.double().abs() / scale
    half_step = torch.where(quotients <= 2, 0.25, torch.where(quotients <= 4, 0.5, 1.0))
    assert bool(((weight.double() - values.double()).abs() <= half_step * scale * (1 + 1e-6)).all())


@given(weight=weights, tensor_scale=tensor_scales)
@settings(max_examples=60, deadline=None)
def test_gradient_is_that_of_the_clipped_formula_in_float64(weight: torch.Tensor, tensor_scale: float | None) -> None:
    grid = make(torch.float32, tensor_scale)
    quantized = grid.quantize(weight)
    assert quantized.tensor_scale is not None
    scale = (quantized.scales.double() * quantized.tensor_scale).repeat_interleave(16, 1)
    exact = weight.double().requires_grad_()
    quotients = exact / scale
    # The code E2M1 would have next is 8, and 7, half way, is nearer to its even significand: 7 and more are clipped.
    clipped = torch.where(quotients.abs() < 7, quotients, 6 * quotients.detach().sign())
    magnitudes = torch.tensor(E2M1, dtype=torch.float64)[(quantized.codes & 7).long()]
    rounding = magnitudes * quotients.detach().sign() - clipped.detach()
    upstream = torch.arange(1.0, 97.0).view(3, 32)
    ((clipped + rounding) * scale * upstream).sum().backward()
    trained = weight.clone().requires_grad_()
    (grid.fake_quantize(trained) * upstream).sum().backward()
    assert trained.grad is not None
    assert exact.grad is not None
    assert torch.equal(trained.grad, exact.grad.float())


def test_groups_above_448_clip_and_get_no_gradient_there() -> None:
    # Under 2^-8 a group reaches 448 · 6 / 256 = 10.5; a next code would be at 14, so 12.25 and more are clipped.
    weight = torch.zeros(1, 16)
    weight[0, :5] = torch.tensor([100.0, -12.25, 12.0, -10.5, 1.0])
    weight.requires_grad_()
    values = make(torch.float32, 2.0**-8).fake_quantize(weight)
    assert values[0, :5].tolist() == [10.5, -10.5, 10.5, -10.5, 0.875]
    values.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 0.0] + [1.0] * 14]


@pytest.mark.slow
@pytest.mark.parametrize("tensor_scale", [None, 2.0**-13])
def test_compiled_fake_quantization_has_the_same_bits(tensor_scale: float | None) -> None:
    weight, grid = random_weight(), make(torch.bfloat16, tensor_scale)
    options: dict[str, Any] = {"eager_numerics.division_rounding": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        values, inside = torch.compile(lambda w: grid.fake_quantize_with_mask(w), options=options)(weight)
    expected, expected_inside = grid.fake_quantize_with_mask(weight)
    assert torch.equal(bits(values), bits(expected))
    assert torch.equal(inside, expected_inside)
