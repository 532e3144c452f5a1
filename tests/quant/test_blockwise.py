"""NF4 and FP4 against bitsandbytes' CPU kernels, bit for bit, and what must hold for any weight."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.quant import Quantized, make_grid, pack, unpack
from rayqd.quant.blockwise import BlockwiseGrid
from rayqd.quant.codebooks import FP4, NF4, Codebook
from rayqd.quant.nested import make_dynamic_map, nest, unnest

CPU = torch.device("cpu")
CODEBOOKS = {"nf4": NF4, "fp4": FP4}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INT_VIEW = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def grid_of(
    form: str, *, group_size: int = 32, dtype: torch.dtype = torch.bfloat16, double_quant: bool = False
) -> BlockwiseGrid:
    quant = QuantConfig.model_validate({"format": form, "group_size": group_size, "double_quant": double_quant})
    grid = make_grid(quant, dtype)
    assert isinstance(grid, BlockwiseGrid)
    return grid


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INT_VIEW[tensor.dtype])


def random_weight(dtype: torch.dtype = torch.float32, num_rows: int = 48, num_columns: int = 512) -> torch.Tensor:
    """Rows of different size, one of zeros, one very small."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(num_rows, 1, generator=generator).exp()
    weight = torch.randn(num_rows, num_columns, generator=generator) * sizes * 0.05
    weight[0] = 0.0
    weight[1] *= 1e-4
    return weight.to(dtype)


def quantize_4bit(weight: torch.Tensor, form: str, group_size: int, double_quant: bool) -> tuple[torch.Tensor, Any]:
    return bnb.quantize_4bit(weight, blocksize=group_size, quant_type=form, compress_statistics=double_quant)


@pytest.mark.parametrize("form", CODEBOOKS)
def test_tables_are_those_of_bitsandbytes(form: str) -> None:
    codebook = CODEBOOKS[form]
    assert list(codebook.values) == bnb.get_4bit_type(form, device="cpu").tolist()
    assert sorted(codebook.ascending) == list(range(16))
    assert codebook.sorted_values == sorted(codebook.values)


def test_the_dynamic_map_is_that_of_bitsandbytes() -> None:
    assert torch.equal(make_dynamic_map(CPU), bnb.create_dynamic_map())


@pytest.mark.parametrize("form", CODEBOOKS)
@pytest.mark.parametrize("group_size", [32, 64, 512])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double_quant", [False, True])
def test_codes_scales_and_values_are_those_of_bitsandbytes(
    form: str, group_size: int, dtype: torch.dtype, double_quant: bool
) -> None:
    weight = random_weight(dtype)
    packed, state = quantize_4bit(weight, form, group_size, double_quant)
    grid = grid_of(form, group_size=group_size, dtype=dtype, double_quant=double_quant)
    ours = grid.quantize(weight)
    tensors = pack(ours, "nf4")
    assert torch.equal(tensors["weight_packed"].reshape(-1, 1), packed)
    assert torch.equal(tensors["weight_absmax"].reshape(-1), state.absmax)
    if double_quant:
        assert torch.equal(tensors["weight_nested_absmax"], state.state2.absmax)
        assert torch.equal(tensors["weight_nested_offset"], state.offset)
    # + 0 takes the sign from -0.0: without AVX-512 bitsandbytes' code 8 of FP4 means that, with it and on GPUs +0.0.
    assert torch.equal(bits(grid.dequantize(ours) + 0), bits(bnb.dequantize_4bit(packed, state) + 0))


@pytest.mark.parametrize("form", CODEBOOKS)
def test_a_weight_half_way_between_two_values_gets_the_smaller(form: str) -> None:
    codebook = CODEBOOKS[form]
    weight = torch.zeros(3, 32)
    weight[:, 31] = 1.0  # the scale
    half_way = torch.tensor(codebook.boundaries)
    weight[:, :15] = torch.stack([half_way, half_way.nextafter(torch.tensor(2.0)), half_way.nextafter(-torch.ones(()))])
    codes = grid_of(form).quantize(weight).codes[:, :15]
    assert codes.tolist() == [
        list(codebook.ascending[:-1]),
        list(codebook.ascending[1:]),
        list(codebook.ascending[:-1]),
    ]
    packed, _ = quantize_4bit(weight, form, 32, False)
    assert torch.equal(pack(grid_of(form).quantize(weight), "nf4")["weight_packed"].reshape(-1, 1), packed)


def test_fp4_has_two_zeros_and_gives_eight_to_small_positive_weights() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :5] = torch.tensor([1.0, 0.001, -0.001, 0.0, -0.0])
    grid = grid_of("fp4", dtype=torch.float32)
    quantized = grid.quantize(weight)
    assert quantized.codes[0, :5].tolist() == [3, 8, 0, 0, 0]
    assert bits(grid.dequantize(quantized))[0, 1:].tolist() == [0] * 31


def test_nested_scales_equal_bitsandbytes_on_many_scales() -> None:
    scales = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)).abs() * 0.1
    nested = nest(scales)
    codes, state = bnb.quantize_blockwise(scales[0] - nested.offset, blocksize=256)
    assert torch.equal(nested.codes, codes)
    assert torch.equal(nested.scales, state.absmax)
    assert torch.equal(unnest(nested, 1)[0], bnb.dequantize_blockwise(codes, state) + nested.offset)


def test_nested_codes_equal_bitsandbytes_where_its_lookup_goes_from_one_code_to_the_next() -> None:
    # Of 65,536 steps from -1 to 1, those at which the nearest code changes, and what lies up to 60 · 2^-24 beside them.
    dynamic_map = make_dynamic_map(CPU)
    lookups = torch.arange(65536, dtype=torch.float64) / 65535 * 2 - 1
    nearest = torch.bucketize(lookups.float(), (dynamic_map[:-1] + dynamic_map[1:]) / 2)
    changes = ((lookups[:-1] + lookups[1:]) / 2)[nearest[1:] != nearest[:-1]].float()
    beside = changes[:, None] + torch.arange(-60, 61) * 2.0**-24
    shares = beside.flatten()[: beside.numel() // 254 * 254].view(-1, 254)
    ends = torch.tensor([1.0, -1.0]).expand(len(shares), 2)
    blocks = torch.cat([ends, shares], dim=1)
    blocks = torch.cat([blocks, -blocks])  # so that their mean is 0
    nested = nest(blocks)
    codes, _ = bnb.quantize_blockwise(blocks.flatten() - nested.offset, blocksize=256)
    assert nested.offset.abs() < 1e-7
    assert torch.equal(nested.codes, codes)


def test_equal_scales_nest_to_themselves() -> None:
    # They all are their mean; bitsandbytes stores code 0 for a block of zeros.
    nested = nest(torch.full((2, 3), 0.5))
    assert nested.codes.tolist() == [0] * 6
    assert unnest(nested, 2).tolist() == [[0.5] * 3] * 2


@pytest.mark.parametrize("form", CODEBOOKS)
@pytest.mark.parametrize("double_quant", [False, True])
def test_unpack_inverts_pack(form: Any, double_quant: bool) -> None:
    quantized = grid_of(form, double_quant=double_quant).quantize(random_weight())
    tensors = pack(quantized, form)
    assert tensors["weight_packed"].shape == (48, 256)
    assert tensors["weight_packed"][0, 0] == 16 * quantized.codes[0, 0] + quantized.codes[0, 1]
    unpacked = unpack(tensors)
    assert unpacked.codes.dtype == torch.int8
    assert torch.equal(unpacked.codes, quantized.codes)
    assert torch.equal(unpacked.scales, quantized.scales)
    assert (unpacked.nested is not None) == double_quant


@pytest.mark.parametrize("form", CODEBOOKS)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inf_and_nan_are_refused_by_name_and_reach_the_fake_quantized_values(
    form: str, double_quant: bool, bad: float
) -> None:
    weight = random_weight()
    weight[5, 40] = bad
    grid = grid_of(form, double_quant=double_quant)
    with pytest.raises(ModelError, match=r"layers\.3\.up_proj holds 1 values that are inf or nan out of 24576"):
        grid.quantize(weight, name="layers.3.up_proj")
    assert not bool(torch.isfinite(grid.fake_quantize(weight)).all())


def test_values_too_large_for_float16_are_refused() -> None:
    with pytest.raises(ModelError, match="too large for scales in float16"):
        grid_of("nf4", dtype=torch.float16).quantize(torch.full((1, 32), 1e6))


def test_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quant\.group_size=32 does not divide a weight's 48 input features"):
        grid_of("nf4").quantize(torch.ones(2, 48))


@pytest.mark.parametrize("form", CODEBOOKS)
def test_a_weight_that_is_not_contiguous_is_quantized_as_its_copy(form: str) -> None:
    transposed = random_weight(num_rows=128, num_columns=48).T
    grid = grid_of(form)
    assert torch.equal(grid.quantize(transposed).codes, grid.quantize(transposed.contiguous()).codes)
    assert torch.equal(grid.fake_quantize(transposed), grid.fake_quantize(transposed.contiguous()))


def test_bits_per_weight_count_scales() -> None:
    assert grid_of("nf4", group_size=64).bits_per_weight == 4 + 32 / 64
    assert grid_of("fp4", group_size=64, double_quant=True).bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256)


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


def test_quantized_reports_its_group_size() -> None:
    quantized: Quantized = grid_of("fp4", group_size=64).quantize(random_weight())
    assert quantized.quant_group_size == 64
