"""What must hold of NF4 and FP4 for any weight: bitsandbytes' codes, values, order, error, the gradient's formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayqd.quant import pack
from rayqd.quant.codebooks import Codebook
from tests.quant.blockwise_weights import CODEBOOKS, DTYPES, bits, grid_of, quantize_4bit, random_weight

weights = arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32)).map(torch.from_numpy)
forms = st.sampled_from(list(CODEBOOKS))


@given(weight=weights, form=forms, dtype=st.sampled_from(DTYPES), double_quant=st.booleans())
@settings(max_examples=100, deadline=None)
def test_fake_quantized_values_have_the_bits_of_the_stored_codes(
    weight: torch.Tensor, form: str, dtype: torch.dtype, double_quant: bool
) -> None:
    grid = grid_of(form, dtype=dtype, double_quant=double_quant)
    quantized = grid.quantize(weight)
    stored = grid.dequantize(quantized)
    values, inside = grid.fake_quantize_with_mask(weight)
    assert quantized.codes.dtype == torch.int8
    assert bool(((quantized.codes >= 0) & (quantized.codes < 16)).all())
    assert quantized.scales.dtype == torch.float32
    assert quantized.scales.shape == (3, 2)
    assert quantized.quant_group_size == 32
    assert values.dtype == stored.dtype == dtype
    assert inside.shape == values.shape == weight.shape
    assert torch.equal(bits(values), bits(stored))
    assert torch.equal(bits(grid.fake_quantize(weight)), bits(stored))


@given(weight=weights, form=forms, double_quant=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_weight_is_stored_as_bitsandbytes_stores_it(weight: torch.Tensor, form: str, double_quant: bool) -> None:
    assume(not double_quant or weight.abs().max() > 1e-30)  # below 2^-128 its reciprocal of the largest scale is inf
    packed, state = quantize_4bit(weight, form, 32, double_quant)
    tensors = pack(grid_of(form, double_quant=double_quant).quantize(weight), "fp4")
    assert torch.equal(tensors["weight_packed"].reshape(-1, 1), packed)
    assert torch.equal(tensors["weight_absmax"].reshape(-1), state.absmax)


@given(weight=weights, form=forms)
@settings(max_examples=60, deadline=None)
def test_idempotent_without_double_quantization(weight: torch.Tensor, form: str) -> None:
    # The largest weight is a value of the grid; below 2^-126, where float32 has fewer digits, the table's have none.
    groups = weight.view(-1, 32)
    normal = groups.abs().amax(-1) > 1e-30
    grid = grid_of(form, dtype=torch.float32)
    once = grid.fake_quantize(groups)
    assert torch.equal(grid.fake_quantize(once)[normal], once[normal])


@given(weight=weights, form=forms)
@settings(max_examples=60, deadline=None)
def test_larger_weights_of_a_group_have_larger_values(weight: torch.Tensor, form: str) -> None:
    groups = weight.view(-1, 32).sort(-1).values
    values = grid_of(form, dtype=torch.float32).fake_quantize(groups)
    assert bool((values.diff(dim=-1) >= 0).all())


@given(weight=weights, form=forms)
@settings(max_examples=60, deadline=None)
def test_no_other_value_of_the_table_is_nearer(weight: torch.Tensor, form: str) -> None:
    values = grid_of(form, dtype=torch.float32).fake_quantize(weight)
    scales = weight.view(3, 2, 32).abs().amax(-1).double()
    table = torch.tensor(CODEBOOKS[form].values, dtype=torch.float64) * scales[..., None, None]
    least = (weight.view(3, 2, 32, 1).double() - table).abs().amin(-1)
    error = (weight - values).double().abs().view(3, 2, 32)
    assert bool((error <= least + 1e-6 * scales.unsqueeze(-1) + 1e-37).all())


@given(weight=weights, form=forms)
@settings(max_examples=30, deadline=None)
def test_gradient_passes_everywhere_without_double_quantization(weight: torch.Tensor, form: str) -> None:
    upstream = torch.arange(1.0, 193.0).view(3, 64)
    trained = weight.clone().requires_grad_()
    (grid_of(form, dtype=torch.float32).fake_quantize(trained) * upstream).sum().backward()
    assert trained.grad is not None
    assert torch.equal(trained.grad, upstream)


def end_steps(codebook: Codebook) -> float:
    """The smaller of the table's two outermost steps."""
    ordered = sorted(codebook.values)
    return min(1 - ordered[-2], ordered[1] + 1)


@given(weight=weights, form=forms)
@settings(max_examples=60, deadline=None)
def test_gradient_is_that_of_the_clipped_formula_in_float64(weight: torch.Tensor, form: str) -> None:
    grid = grid_of(form, dtype=torch.float32, double_quant=True)
    quantized = grid.quantize(weight)
    scale = quantized.scales.repeat_interleave(32, 1)
    limit = ((1 + end_steps(CODEBOOKS[form]) / 2) * quantized.scales).repeat_interleave(32, 1)
    exact = weight.double().requires_grad_()
    clipped = torch.where(exact.abs() <= limit, exact, scale.double() * exact.detach().sign())
    values = torch.tensor(CODEBOOKS[form].values, dtype=torch.float64)[quantized.codes.long()] * scale
    upstream = torch.arange(1.0, 193.0).view(3, 64)
    ((clipped + (values - clipped).detach()) * upstream).sum().backward()
    trained = weight.clone().requires_grad_()
    (grid.fake_quantize(trained) * upstream).sum().backward()
    assert trained.grad is not None
    assert exact.grad is not None
    assert torch.equal(trained.grad, exact.grad.float())


def test_weights_past_the_ends_of_a_nested_scale_get_no_gradient() -> None:
    # Scales are 0.5 but for 0.001 to 0.04 and one of 0.99. Nested they are their mean, 0.427, plus codes times the
    # largest deviation, 0.563. Codes near -0.4 / 0.563 are 0.9 / 64 apart, so nested scales are 0.0079: 0.00254,
    # 0.01045, 0.01837, 0.02629, 0.03421. The table's end and half its last step, 0.1385, reach to 0.0029, 0.0119,
    # 0.0209, 0.0299, 0.0389: 0.003 to 0.006, 0.012 to 0.014, 0.021, 0.022 and 0.030 are past them.
    weight = torch.zeros(256, 32)
    weight[:, 0] = 0.5
    weight[:40, 0] = torch.arange(1, 41) / 1000
    weight[255, 0] = 0.99
    grid = grid_of("nf4", dtype=torch.float32, double_quant=True)
    scales = grid.quantize(weight).scales
    _, inside = grid.fake_quantize_with_mask(weight)
    past_the_end = weight[:, :1] > scales * (1 + (1 - 0.7229568362236023) / 2)
    assert torch.equal(~inside[:, :1], past_the_end)
    assert int(past_the_end.sum()) == 4 + 3 + 2 + 1
    assert torch.equal(inside[:, 1:], (scales >= 0).expand(256, 31))


@pytest.mark.slow
@pytest.mark.parametrize("form", CODEBOOKS)
@pytest.mark.parametrize("double_quant", [False, True])
def test_compiled_fake_quantization_has_the_same_bits(form: str, double_quant: bool) -> None:
    weight, grid = random_weight(), grid_of(form, double_quant=double_quant)
    values, inside = torch.compile(lambda w: grid.fake_quantize_with_mask(w))(weight)
    expected, expected_inside = grid.fake_quantize_with_mask(weight)
    assert torch.equal(bits(values), bits(expected))
    assert torch.equal(inside, expected_inside)
