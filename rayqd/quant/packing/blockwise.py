"""NF4 and FP4 weights on the wire. The codes lie as in a bitsandbytes checkpoint, the names are ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rayqd.quant.grid import NestedScales, Quantized
from rayqd.quant.nested import unnest
from rayqd.quant.packing.int4 import join_nibbles, split_nibbles


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """Return weight_packed uint8 [N, K/2], the first code in the high nibble, and weight_absmax float32 [N, K/g].

    With double quantization weight_absmax is uint8 [N·K/g], and there are weight_nested_absmax float32 [N·K/g/256] and
    weight_nested_offset float32 [].
    """
    codes = quantized.codes.view(torch.uint8)
    packed = join_nibbles(low=codes[:, 1::2], high=codes[:, 0::2])
    nested = quantized.nested
    if nested is None:
        return {"weight_packed": packed, "weight_absmax": quantized.scales}
    return {
        "weight_packed": packed,
        "weight_absmax": nested.codes,
        "weight_nested_absmax": nested.scales,
        "weight_nested_offset": nested.offset,
    }


def unpack(tensors: Mapping[str, Tensor]) -> Quantized:
    """Return what `pack` was given."""
    low, high = split_nibbles(tensors["weight_packed"])
    codes = torch.stack((high, low), dim=-1).flatten(-2).view(torch.int8)
    if "weight_nested_absmax" not in tensors:
        return Quantized(codes, tensors["weight_absmax"])
    nested = NestedScales(tensors["weight_absmax"], tensors["weight_nested_absmax"], tensors["weight_nested_offset"])
    return Quantized(codes, unnest(nested, len(codes)), nested=nested)
