"""INT4 weights, and INT8 heads, as the tensors of a compressed-tensors `pack-quantized` file.

Eight codes share an int32, the first in its lowest four bits, each stored as code + 8; of 8 bits four do, as code +
128. Codes are packed along the input features, zero points along the output features; the last int32 is filled up with
zero bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized

if TYPE_CHECKING:
    from jaxtyping import Int8, Int32, UInt8

CODES_PER_INT32 = 8


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """Return weight_packed int32 [N, K/8], weight_scale [N, K/g] and weight_shape int64 [2].

    Asymmetric grids have a weight_zero_point int32 [N/8, K/g] too. Codes of 8 bits are packed to [N, K/4].
    """
    tensors = {
        "weight_packed": pack_codes(quantized.codes, quantized.bits),
        "weight_scale": quantized.scales,
        "weight_shape": torch.tensor(quantized.codes.shape, dtype=torch.int64),
    }
    if quantized.zero_points is not None:
        tensors["weight_zero_point"] = pack_codes(quantized.zero_points.T).T.contiguous()
    return tensors


def unpack(tensors: Mapping[str, Tensor]) -> Quantized:
    """Return what `pack` was given; `weight_zero_point` is absent from symmetric grids."""
    num_rows, num_columns = (int(size) for size in tensors["weight_shape"])
    packed_zero_points = tensors.get("weight_zero_point")
    bits = 4 if tensors["weight_packed"].shape[1] == -(-num_columns // CODES_PER_INT32) else 8
    return Quantized(
        bits=bits,
        codes=unpack_codes(tensors["weight_packed"], num_columns, bits),
        scales=tensors["weight_scale"],
        zero_points=None if packed_zero_points is None else unpack_codes(packed_zero_points.T, num_rows).T.contiguous(),
    )


def pack_codes(codes: Int8[Tensor, "N K"], bits: int = 4) -> Int32[Tensor, "N K/8"]:
    """Pack eight codes of 4 bits, or four of 8, to an int32 along the last dimension, the first lowest."""
    if bits == 8:
        octets = torch.nn.functional.pad(codes.view(torch.uint8) ^ 128, (0, -codes.shape[-1] % 4))
        return octets.reshape(-1).view(torch.int32).reshape(len(codes), -1)
    padding = -codes.shape[-1] % CODES_PER_INT32
    nibbles = torch.nn.functional.pad(codes + 8, (0, padding)).view(torch.uint8)
    octets = join_nibbles(low=nibbles[:, 0::2], high=nibbles[:, 1::2])  # four octets make a little-endian int32
    return octets.reshape(-1).view(torch.int32).reshape(len(codes), -1)  # one row has strides that no view is made of


def unpack_codes(packed: Int32[Tensor, "N K/8"], num_columns: int, bits: int = 4) -> Int8[Tensor, "N K"]:
    """Return the codes that `pack_codes` was given; `num_columns` is K."""
    octets = packed.reshape(-1).view(torch.uint8).reshape(len(packed), -1)
    if bits == 8:
        return (octets[:, :num_columns] ^ 128).view(torch.int8)
    nibbles = torch.stack(split_nibbles(octets), dim=-1).flatten(-2)
    return nibbles[:, :num_columns].to(torch.int8) - 8


def join_nibbles(*, low: UInt8[Tensor, "N J"], high: UInt8[Tensor, "N J"]) -> UInt8[Tensor, "N J"]:
    """Put two numbers below 16 into a byte."""
    return low | (high << 4)


def split_nibbles(octets: UInt8[Tensor, "N J"]) -> tuple[UInt8[Tensor, "N J"], UInt8[Tensor, "N J"]]:
    """Return the low and the high four bits of each byte."""
    return octets & 15, octets >> 4
