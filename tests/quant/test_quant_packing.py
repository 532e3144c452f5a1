"""Packed tensors against compressed-tensors' own functions."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from rayqd.config.sections.quant import Format, QuantConfig
from rayqd.quant import Quantized, make_grid, pack, unpack
from rayqd.quant.formats import FORMATS


def random_quantized(num_rows: int, num_columns: int, group_size: int, *, asymmetric: bool) -> Quantized:
    generator = torch.Generator().manual_seed(num_rows)
    codes = torch.randint(-8, 8, (num_rows, num_columns), generator=generator, dtype=torch.int8)
    groups = (num_rows, num_columns // group_size)
    zero_points = torch.randint(-8, 8, groups, generator=generator, dtype=torch.int8)
    return Quantized(codes, torch.randn(groups, generator=generator).bfloat16(), zero_points if asymmetric else None)


def test_first_code_lies_in_the_lowest_nibble_as_code_plus_eight() -> None:
    # -8 .. -1 are stored as 0 .. 7; 0 .. 7 as 8 .. 15, whose top bit makes the int32 negative.
    quantized = Quantized(torch.arange(-8, 8, dtype=torch.int8).view(1, 16), torch.ones(1, 1))
    assert pack(quantized)["weight_packed"].tolist() == [[0x76543210, 0xFEDCBA98 - 2**32]]


SHAPES = [(16, 64, 32), (5, 64, 32), (3, 20, 10)]  # the last two leave int32s partly filled


@pytest.mark.parametrize(("num_rows", "num_columns", "group_size"), SHAPES)
def test_pack_equals_compressed_tensors(num_rows: int, num_columns: int, group_size: int) -> None:
    quantized = random_quantized(num_rows, num_columns, group_size, asymmetric=True)
    tensors = pack(quantized)
    assert quantized.zero_points is not None
    assert torch.equal(tensors["weight_packed"], pack_to_int32(quantized.codes, 4))
    assert torch.equal(tensors["weight_zero_point"], pack_to_int32(quantized.zero_points, 4, packed_dim=0))
    assert torch.equal(tensors["weight_scale"], quantized.scales)
    assert tensors["weight_shape"].tolist() == [num_rows, num_columns]
    assert tensors["weight_shape"].dtype == torch.int64
    codes = unpack_from_int32(tensors["weight_packed"], 4, torch.Size([num_rows, num_columns]))
    assert torch.equal(codes, quantized.codes)


@pytest.mark.parametrize(("num_rows", "num_columns", "group_size"), SHAPES)
def test_unpack_reads_what_compressed_tensors_packed(num_rows: int, num_columns: int, group_size: int) -> None:
    quantized = random_quantized(num_rows, num_columns, group_size, asymmetric=True)
    assert quantized.zero_points is not None
    unpacked = unpack(
        {
            "weight_packed": pack_to_int32(quantized.codes, 4),
            "weight_scale": quantized.scales,
            "weight_shape": torch.tensor([num_rows, num_columns]),
            "weight_zero_point": pack_to_int32(quantized.zero_points, 4, packed_dim=0),
        }
    )
    assert unpacked.zero_points is not None
    assert torch.equal(unpacked.codes, quantized.codes)
    assert torch.equal(unpacked.zero_points, quantized.zero_points)
    assert unpacked.quant_group_size == group_size


def test_symmetric_weights_have_no_zero_points() -> None:
    quantized = random_quantized(16, 64, 32, asymmetric=False)
    assert sorted(pack(quantized)) == ["weight_packed", "weight_scale", "weight_shape"]
    assert unpack(pack(quantized)).zero_points is None


def test_every_format_of_the_setting_has_an_entry_and_its_own_packed_part() -> None:
    assert set(FORMATS) == set(get_args(Format))
    for name, known in FORMATS.items():
        quant = QuantConfig(format=name)
        packed = pack(make_grid(quant, torch.bfloat16).quantize(torch.randn(8, 256)), name)
        assert known.own_part in packed
        others = {other.own_part for other in FORMATS.values()} - {known.own_part}
        assert not others & packed.keys()
        assert bool(known.scheme) == (known.container == "compressed-tensors")
