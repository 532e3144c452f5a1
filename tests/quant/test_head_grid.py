"""The grid of an output head against float64 loops over every group."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayqd.errors import ModelError
from rayqd.quant.head import HeadGrid
from rayqd.quant.packing import int4

GROUP = 32


def random_head() -> torch.Tensor:
    """Six rows of two groups, one of them zeros, one with its extreme on both sides."""
    weight = torch.randn(6, 2 * GROUP, generator=torch.Generator().manual_seed(1))
    weight[0, :GROUP] = 0.0
    weight[1, 3], weight[1, 7] = 4.0, -4.0
    return weight


def to_float32(value: float) -> float:
    return float(np.float32(value))


@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_the_nearest_multiples_of_the_scale(bits: int) -> None:
    weight = random_head()
    grid = HeadGrid(bits, GROUP, torch.float32)
    found = grid.quantize(weight)
    limit = 2 ** (bits - 1)
    for row in range(len(weight)):
        for column in range(weight.shape[1]):
            scale = found.scales[row, column // GROUP].item()
            steps = 0 if scale == 0 else to_float32(weight[row, column].item() / scale)
            code = min(max(round(steps), -limit), limit - 1)  # Python's round is half to even, too
            assert found.codes[row, column].item() == code
    assert torch.equal(grid.dequantize(found), found.codes.float() * found.scales.repeat_interleave(GROUP, 1))


def test_eight_bits_reach_the_extreme_of_each_group() -> None:
    weight = random_head()
    scales = HeadGrid(8, GROUP, torch.float32).quantize(weight).scales
    for row in range(len(weight)):
        for group in range(2):
            values = weight[row, group * GROUP : (group + 1) * GROUP].tolist()
            extreme = max(values, key=abs)  # the first of equals
            assert scales[row, group].item() == to_float32(extreme / -128)


def test_four_bits_have_less_error_than_the_extremes_scale_and_no_more_than_any_share_of_either_end() -> None:
    weight = random_head()
    found = HeadGrid(4, GROUP, torch.float32).quantize(weight)
    values = found.codes.double() * found.scales.double().repeat_interleave(GROUP, 1)
    for row in range(len(weight)):
        for group in range(2):
            columns = slice(group * GROUP, (group + 1) * GROUP)
            own = weight[row, columns].double().numpy()
            error = ((values[row, columns].numpy() - own) ** 2).sum()
            for end in (own.max(), own.min()):
                for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7):
                    scale = share * end / -8
                    codes = np.clip(np.round(own / (scale or 1.0)), -8, 7)
                    assert error <= ((codes * scale - own) ** 2).sum() * (1 + 1e-5) + 1e-12


def test_rows_rounded_some_at_a_time_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_head()
    for bits in (4, 8):
        grid = HeadGrid(bits, GROUP, torch.bfloat16)
        whole = grid.quantize(weight)
        with monkeypatch.context() as patch:
            patch.setattr("rayqd.quant.head._BLOCK_WEIGHTS", 4 * weight.shape[1])
            parts = grid.quantize(weight)
        assert torch.equal(whole.codes, parts.codes)
        assert torch.equal(whole.scales, parts.scales)


def test_inf_and_nan_are_refused_by_name() -> None:
    weight = random_head()
    weight[2, 5] = float("nan")
    with pytest.raises(ModelError, match="lm_head holds 1 values that are inf or nan"):
        HeadGrid(8, GROUP, torch.float32).quantize(weight, name="lm_head")


def test_codes_of_eight_bits_lie_four_to_an_int32_the_first_lowest() -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8).reshape(8, 32)
    packed = int4.pack_codes(codes, 8)
    assert packed.shape == (8, 8)
    for row in range(8):
        for column in range(32):
            word = int(packed[row, column // 4]) & 0xFFFFFFFF
            assert (word >> 8 * (column % 4) & 255) - 128 == codes[row, column]
    assert torch.equal(int4.unpack_codes(packed, 32, 8), codes)


def test_packed_tensors_tell_their_bits() -> None:
    for bits in (4, 8):
        quantized = HeadGrid(bits, GROUP, torch.bfloat16).quantize(random_head())
        again = int4.unpack(int4.pack(quantized))
        assert again.bits == bits
        assert torch.equal(again.codes, quantized.codes)
        assert torch.equal(again.scales, quantized.scales)
