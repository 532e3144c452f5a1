"""NVFP4 weights as the tensors of a compressed-tensors `nvfp4-pack-quantized` file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized
from rayqd.quant.packing.int4 import join_nibbles, split_nibbles


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """Return weight_packed uint8 [N, K/2], weight_scale float8_e4m3fn [N, K/16] and weight_global_scale float32 [1].

    The first code is in the low nibble; weight_global_scale divides the scales.
    """
    assert quantized.tensor_scale is not None
    codes = quantized.codes.view(torch.uint8)
    return {
        "weight_packed": join_nibbles(low=codes[:, 0::2], high=codes[:, 1::2]),
        "weight_scale": quantized.scales,
        "weight_global_scale": (1 / quantized.tensor_scale).reshape(1),
    }


def unpack(tensors: Mapping[str, Tensor]) -> Quantized:
    """Return what `pack` was given; exact where weight_global_scale is a power of two."""
    low, high = split_nibbles(tensors["weight_packed"])
    return Quantized(
        codes=torch.stack((low, high), dim=-1).flatten(-2).view(torch.int8),
        scales=tensors["weight_scale"],
        tensor_scale=1 / tensors["weight_global_scale"].reshape(()),
    )
