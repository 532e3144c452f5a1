"""NF4 and FP4 against bitsandbytes' CPU kernels, bit for bit."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch

from rayqd.errors import ConfigError, ModelError
from rayqd.quant import Quantized, pack, unpack
from rayqd.quant.nested import make_dynamic_map, nest, unnest
from tests.quant.blockwise_weights import CODEBOOKS, DTYPES, bits, grid_of, quantize_4bit, random_weight

CPU = torch.device("cpu")


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


def test_quantized_reports_its_group_size() -> None:
    quantized: Quantized = grid_of("fp4", group_size=64).quantize(random_weight())
    assert quantized.quant_group_size == 64
