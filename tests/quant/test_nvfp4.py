"""NVFP4 against numbers worked out by hand, a scalar loop, torchao and compressed-tensors."""

from __future__ import annotations

import math

import pytest
import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, f32_to_f4_unpacked, unpack_uint4
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.quant import Quantized, make_grid, pack, unpack
from rayqd.quant.nvfp4 import E2M1, NVFP4Grid, choose_tensor_scale, round_to_e2m1
from tests.quant.nvfp4_weights import bits, make, random_weight

FP8_MAGNITUDES = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0**e for e in range(-6, 9) for m in range(8)]
SCHEME: QuantizationScheme = preset_name_to_scheme("NVFP4A16", ["Linear"])


def nearest(magnitudes: list[float], value: float) -> int:
    """Index of the nearest; of two equally near ones the even index, which is the even significand."""
    return min(range(len(magnitudes)), key=lambda i: (abs(magnitudes[i] - value), i % 2))


def scalar_loop(weight: torch.Tensor, tensor_scale: float) -> Quantized:
    """The format element by element in Python's float64, with tables instead of bit patterns."""
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    scales = torch.zeros(weight.shape[0], weight.shape[1] // 16)
    for n in range(weight.shape[0]):
        for g in range(scales.shape[1]):
            group = weight[n, 16 * g : 16 * g + 16].tolist()
            wanted = max(abs(w) for w in group) / 6 / tensor_scale
            scale = FP8_MAGNITUDES[nearest(FP8_MAGNITUDES[:127], min(448.0, max(2.0**-6, wanted)))]
            scales[n, g] = scale
            for k, w in enumerate(group):
                code = nearest(list(E2M1), abs(w) / (scale * tensor_scale))
                codes[n, 16 * g + k] = code + 8 * (math.copysign(1, w) < 0)
    return Quantized(codes, scales.to(torch.float8_e4m3fn), tensor_scale=torch.tensor(tensor_scale))


def test_group_worked_out_by_hand() -> None:
    # max = 2.7, and 2.7 / 2688 = 2^-9.96, so the tensor's scale is 2^-9. The group's: 2.7 / 6 · 512 = 230.4, between
    # the FP8 numbers 224 and 240; 224 is nearer. One step is 224 / 512 = 0.4375. Ties go to the even code.
    #   w             2.7   -0.1    -0.15   0.328125  0.546875  -0.765625  1.09375  1.53125  2.1875  0.109375  rest 0
    #   w / 0.4375    6.17  -0.229  -0.343  0.75      1.25      -1.75      2.5      3.5      5       0.25
    #   E2M1          6     -0      -0.5    1         1         -2         2        4        4       0
    #   code          7     8       9       2         2         12         4        6        6       0
    weight = torch.zeros(1, 16)
    weight[0, :10] = torch.tensor([2.7, -0.1, -0.15, 0.328125, 0.546875, -0.765625, 1.09375, 1.53125, 2.1875, 0.109375])
    grid = NVFP4Grid(torch.bfloat16)
    quantized = grid.quantize(weight)
    assert quantized.tensor_scale is not None
    assert quantized.tensor_scale.item() == 2.0**-9
    assert quantized.tensor_scale.dtype == torch.float32
    assert quantized.scales.float().tolist() == [[224.0]]
    assert quantized.codes.tolist() == [[7, 8, 9, 2, 2, 12, 4, 6, 6, 0, 0, 0, 0, 0, 0, 0]]
    values = [6 * 0.4375, -0.0, -0.21875, 0.4375, 0.4375, -0.875, 0.875, 1.75, 1.75]
    assert grid.dequantize(quantized)[0, :9].tolist() == values
    _, inside = grid.fake_quantize_with_mask(weight)
    assert bool(inside.all())  # 6.17 rounds to 6, which is nearer than a next code, 8, would be


@pytest.mark.parametrize("tensor_scale", [None, 2.0**-13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_and_scales_equal_a_scalar_loop(dtype: torch.dtype, tensor_scale: float | None) -> None:
    weight = random_weight(dtype)
    actual = make(dtype, tensor_scale).quantize(weight)
    least = weight.abs().max().item() / (448 * 6)
    expected = scalar_loop(weight, tensor_scale or 2.0 ** math.ceil(math.log2(least)))
    assert actual.tensor_scale is not None
    assert expected.tensor_scale is not None
    assert actual.tensor_scale.item() == expected.tensor_scale.item()
    assert torch.equal(actual.scales.float(), expected.scales.float())
    assert torch.equal(actual.codes, expected.codes)


def test_every_float_near_a_tie_rounds_as_torchao_rounds_it() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    below, above = ties.nextafter(torch.tensor(0.0)), ties.nextafter(torch.tensor(9.0))
    tiny = torch.tensor([0.0, 2.0**-149, 2.0**-126, 1e-20, 6.0])
    values = torch.cat([ties, below, above, tiny, torch.linspace(0, 6.9, 10001)])
    values = torch.cat([values, -values])
    expected = f4_unpacked_to_f32(f32_to_f4_unpacked(values))
    assert torch.equal(bits(round_to_e2m1(values).clamp(-6, 6)), bits(expected))


def test_rounding_goes_on_past_six_in_steps_of_two() -> None:
    values = torch.tensor([6.9, 7.0, -7.0, 100.0, torch.inf, torch.nan])
    rounded = round_to_e2m1(values)
    assert rounded[:4].tolist() == [6.0, 8.0, -8.0, 100.0]
    assert not bool(torch.isfinite(rounded[5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tensor_scale", [None, 2.0**-13])
def test_torchao_stores_the_same_except_where_its_inverse_moves_an_exact_tie(
    dtype: torch.dtype, tensor_scale: float | None
) -> None:
    weight = random_weight(dtype)
    grid = make(dtype, tensor_scale)
    ours = grid.quantize(weight)
    theirs = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=ours.tensor_scale)
    their_codes = unpack_uint4(theirs.qdata).view(weight.shape).to(torch.int8)
    assert torch.equal(ours.scales.view(torch.uint8), theirs.scale.view(torch.uint8))
    # torchao multiplies by (1 / tensor_scale) / scale, rounded, we divide: an ulp decides where w / scale is a tie.
    differs = ours.codes != their_codes
    assert ours.tensor_scale is not None
    quotients = weight.double() / (ours.scales.double() * ours.tensor_scale).repeat_interleave(16, 1)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)
    distances = (quotients[differs].abs().unsqueeze(-1) / ties - 1).abs().amin(-1)
    assert bool((distances <= 2.0**-22).all())
    assert int(differs.sum()) < weight.numel() // 500
    values, their_values = grid.dequantize(ours), theirs.dequantize(dtype)
    assert torch.equal(bits(values)[~differs], bits(their_values)[~differs])


@pytest.mark.slow
@pytest.mark.parametrize("tensor_scale", [None, 2.0**-13])
def test_packed_tensors_are_those_of_compressed_tensors(tensor_scale: float | None) -> None:
    weight = random_weight()
    quantized = make(torch.bfloat16, tensor_scale).quantize(weight)
    tensors = pack(quantized, "nvfp4")
    assert quantized.tensor_scale is not None
    theirs = NVFP4PackedCompressor.compress(
        {
            "weight": weight,
            "weight_scale": quantized.scales.float(),
            "weight_global_scale": 1 / quantized.tensor_scale.reshape(1),
        },
        SCHEME,
    )
    assert sorted(tensors) == sorted(theirs)
    assert torch.equal(tensors["weight_packed"], theirs["weight_packed"])
    assert torch.equal(tensors["weight_scale"].view(torch.uint8), theirs["weight_scale"].view(torch.uint8))
    assert torch.equal(tensors["weight_global_scale"], theirs["weight_global_scale"])


def test_compressed_tensors_decompresses_to_our_values_bit_for_bit() -> None:
    grid = NVFP4Grid(torch.bfloat16)
    quantized = grid.quantize(random_weight())
    theirs = NVFP4PackedCompressor.decompress(pack(quantized, "nvfp4"), SCHEME)["weight"]
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(bits(theirs), bits(grid.dequantize(quantized)))


def test_unpack_inverts_pack() -> None:
    quantized = NVFP4Grid(torch.bfloat16).quantize(random_weight())
    tensors = pack(quantized, "nvfp4")
    assert tensors["weight_packed"][0, 0] == quantized.codes[0, 0] + 16 * quantized.codes[0, 1]
    unpacked = unpack(tensors)
    assert unpacked.codes.dtype == torch.int8
    assert torch.equal(unpacked.codes, quantized.codes)
    assert torch.equal(unpacked.scales.view(torch.uint8), quantized.scales.view(torch.uint8))
    assert unpacked.tensor_scale is not None
    assert unpacked.tensor_scale.shape == ()
    assert unpacked.tensor_scale == quantized.tensor_scale


@pytest.mark.parametrize(("amax", "expected"), [(2688.0, 1.0), (2688.001, 2.0), (1344.0, 0.5), (0.0, 2.0**-100)])
def test_tensor_scale_is_the_least_power_of_two_that_keeps_scales_below_448(amax: float, expected: float) -> None:
    assert choose_tensor_scale(torch.tensor(amax)).item() == expected


def test_negative_zeros_keep_their_sign_and_groups_of_zeros_have_the_least_scale() -> None:
    # 2^-6 is the least normal FP8 number; torchao stores it too. Values are zeros of the sign that the code has.
    weight = torch.zeros(1, 32)
    weight[0, 3], weight[0, 20] = -0.0, 1.0
    grid = NVFP4Grid(torch.float32)
    quantized = grid.quantize(weight)
    assert quantized.scales.float()[0, 0] == 2.0**-6
    assert quantized.codes[0, :16].tolist() == [0, 0, 0, 8] + [0] * 12
    for values in (grid.dequantize(quantized), grid.fake_quantize(weight)):
        assert torch.equal(bits(values[0, :16]), bits(weight[0, :16]))


def test_a_tensor_of_zeros_stays_one() -> None:
    grid = NVFP4Grid(torch.bfloat16)
    quantized = grid.quantize(torch.zeros(2, 16))
    assert not bool(quantized.codes.any())
    assert grid.dequantize(quantized).tolist() == [[0.0] * 16] * 2


@pytest.mark.parametrize("tensor_scale", [None, 2.0**-13])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inf_and_nan_are_refused_by_name(bad: float, tensor_scale: float | None) -> None:
    weight = random_weight()
    weight[5, 40] = bad
    with pytest.raises(ModelError, match=r"layers\.3\.up_proj holds 1 values that are inf or nan out of 16384"):
        make(torch.bfloat16, tensor_scale).quantize(weight, name="layers.3.up_proj")


@pytest.mark.parametrize("tensor_scale", [None, 2.0**-13])
def test_nan_reaches_the_fake_quantized_values(tensor_scale: float | None) -> None:
    weight = random_weight()
    weight[5, 40] = float("nan")
    assert not bool(torch.isfinite(make(torch.bfloat16, tensor_scale).fake_quantize(weight)).all())


def test_values_too_large_for_float16_are_refused() -> None:
    with pytest.raises(ModelError, match="too large for scales in float16"):
        NVFP4Grid(torch.float16).quantize(torch.full((1, 16), 1e6))


def test_rows_that_are_not_groups_of_16_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"quant\.group_size=16 does not divide a weight's 40 input features"):
        NVFP4Grid(torch.bfloat16).quantize(torch.ones(2, 40))


def test_a_weight_that_is_not_contiguous_is_quantized_as_its_copy() -> None:
    transposed = random_weight().T
    grid = NVFP4Grid(torch.bfloat16)
    assert torch.equal(grid.quantize(transposed).codes, grid.quantize(transposed.contiguous()).codes)
    assert torch.equal(grid.fake_quantize(transposed), grid.fake_quantize(transposed.contiguous()))


def test_four_and_a_half_bits_per_weight_in_groups_of_16() -> None:
    grid = make_grid(QuantConfig(format="nvfp4"), torch.bfloat16)
    assert isinstance(grid, NVFP4Grid)
    assert grid.bits_per_weight == 4 + 8 / 16
    assert grid.quant_group_size == grid.quantize(random_weight()).quant_group_size == 16
