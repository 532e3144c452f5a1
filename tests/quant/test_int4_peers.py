"""The INT4 rules against the libraries they come from: torchao's quantizer and GGUF's Q4_0."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

from rayqd.config.sections import QuantConfig
from rayqd.quant import Quantized, make_grid

INT4: Any = torch.__dict__["int4"]  # torch declares no type for it
BLOCK: Any = (1, 64)  # rows and columns that share a scale; torchao declares it as a tuple of one


def random_weight(seed: int, num_rows: int = 256, num_columns: int = 512) -> torch.Tensor:
    return torch.randn(num_rows, num_columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def quotients(weight: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """w / scale in float64, [N, K]."""
    return weight.double() / quantized.scales.double().repeat_interleave(quantized.quant_group_size, 1)


def distance_to_tie(quotient: torch.Tensor) -> torch.Tensor:
    return (quotient - quotient.floor() - 0.5).abs()


@pytest.mark.parametrize("group_size", [32, 128])
def test_absmax_equals_torchao_except_for_ties_at_the_extreme(group_size: int) -> None:
    weight = random_weight(group_size)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight.clone())
    quantize_(linear, IntxWeightOnlyConfig(weight_dtype=INT4, granularity=PerGroup(group_size)))
    theirs: Any = linear.weight
    grid = make_grid(QuantConfig(rule="absmax", group_size=group_size), torch.float32)
    ours = grid.quantize(weight)
    assert torch.equal(ours.scales, theirs.scale)
    # torchao multiplies by 1 / scale, we divide. The extreme is 7.5 steps from 0, so an ulp decides: -7 or -8.
    differs = ours.codes != theirs.qdata
    extreme = weight.view(256, -1, group_size).abs().amax(-1).repeat_interleave(group_size, 1)
    assert torch.equal(weight[differs], -extreme[differs])
    assert bool((quotients(weight, ours)[differs] + 7.5).abs().le(7.5 * 2**-23).all())
    assert set(ours.codes[differs].tolist()) | set(theirs.qdata[differs].tolist()) <= {-7, -8}
    values = grid.dequantize(ours)
    assert torch.equal(values[~differs], theirs.dequantize()[~differs])
    assert 0 < int(differs.sum()) < weight.numel() // 100


@pytest.mark.parametrize("rule", ["absmax", "asymmetric"])
def test_codes_on_bfloat16_scales_equal_torchao_except_for_ties(rule: str) -> None:
    weight = random_weight(1)
    mapping = MappingType.SYMMETRIC if rule == "absmax" else MappingType.ASYMMETRIC
    limits: dict[str, Any] = {"quant_min": -8, "quant_max": 7}
    scales, zero_points = choose_qparams_affine(
        weight, mapping, BLOCK, torch.int8, **limits, scale_dtype=torch.bfloat16, keepdim=True
    )
    ours = make_grid(QuantConfig.model_validate({"rule": rule, "group_size": 64}), torch.bfloat16).quantize(weight)
    assert torch.equal(ours.scales, scales)
    # Zero points: torchao divides by the scale before it is rounded to bfloat16, we by the one that is stored.
    zero_points = ours.zero_points if ours.zero_points is not None else zero_points
    theirs = quantize_affine(weight, BLOCK, scales.float(), zero_points, torch.int8, **limits)
    differs = ours.codes != theirs
    assert bool(distance_to_tie(quotients(weight, ours))[differs].le(16 * 2**-23).all())
    assert int(differs.sum()) < weight.numel() // 1000


def test_asymmetric_zero_points_equal_torchao_on_float32_scales() -> None:
    weight = random_weight(2) + 0.02
    scales, zero_points = choose_qparams_affine(
        weight, MappingType.ASYMMETRIC, BLOCK, torch.int8, quant_min=-8, quant_max=7, keepdim=True
    )
    ours = make_grid(QuantConfig(rule="asymmetric", group_size=64), torch.float32).quantize(weight)
    assert ours.zero_points is not None
    assert torch.equal(ours.scales, scales)
    assert torch.equal(ours.zero_points, zero_points.to(torch.int8))


def q4_0(weight: torch.Tensor) -> Quantized:
    """What the gguf package stores for a weight: blocks of 32 as a float16 scale and 16 bytes of nibbles."""
    blocks = gguf.quantize(weight.float().numpy(), GGMLQuantizationType.Q4_0).reshape(weight.shape[0], -1, 18)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)  # low nibbles are elements 0..15
    codes = nibbles.reshape(weight.shape).astype(np.int8) - 8
    return Quantized(torch.from_numpy(codes), torch.from_numpy(scales))


def test_signed_equals_gguf_q4_0_except_for_exact_halves() -> None:
    # For float16 weights extreme / -8 is exact in float16, so both round on the same scale. They differ only where w is
    # an odd number of half steps: gguf takes trunc(w / d + 8.5), which is half up, and we take half to even; gguf also
    # multiplies by 1 / d, an ulp beside it.
    weight = random_weight(3).half()
    weight[0, :32] = torch.tensor([-4.0, 4.0] * 16)  # equal extremes: the first gives the sign
    weight[1, :32] = torch.arange(-16, 16) / 4  # scale 0.5: every second element is a half step
    weight[2] = 0
    grid = make_grid(QuantConfig(rule="signed", group_size=32), torch.float16)
    ours, theirs = grid.quantize(weight), q4_0(weight)
    assert torch.equal(ours.scales, theirs.scales)
    differs = ours.codes != theirs.codes
    assert bool(distance_to_tie(quotients(weight, ours))[differs].le(8 * 2**-23).all())
    assert 8 <= int(differs.sum()) < weight.numel() // 100  # row 1: 0.5, 2.5, 4.5, 6.5 and their negatives at least
    stored = gguf.quantize(weight.float().numpy(), GGMLQuantizationType.Q4_0)
    values = torch.from_numpy(gguf.dequantize(stored, GGMLQuantizationType.Q4_0)).half()
    assert torch.equal(grid.dequantize(ours)[~differs], values[~differs])


def test_signed_differs_from_gguf_q4_0_only_where_rounding_the_scale_moves_a_weight_across_a_tie() -> None:
    # For float32 weights gguf takes its codes from the scale before float16, we from the stored scale: relative 2^-11.
    weight = random_weight(4)
    ours = make_grid(QuantConfig(rule="signed", group_size=32), torch.float16).quantize(weight)
    theirs = q4_0(weight)
    assert torch.equal(ours.scales, theirs.scales)
    differs = ours.codes != theirs.codes
    assert bool(distance_to_tie(quotients(weight, ours))[differs].le(8 * 2**-11).all())
    assert int(differs.sum()) < weight.numel() // 100
