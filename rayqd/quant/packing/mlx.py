"""INT4 weights, and INT8 heads, as the tensors of MLX's affine quantization: scale · q + bias, q in 0 … 15, or … 255.

A symmetric code c is q = c + 8 with the bias -8 · scale, or c + 128 with -128 · scale, which is exact in every floating
type. A zero point would make a bias that is not: the product of a scale and a number up to 15 has more digits than the
scale.

Shapes: N output features, K input features, g weights a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized
from rayqd.quant.packing.int4 import pack_codes, unpack_codes

PARTS = ("weight", "scales", "biases")


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """Return weight uint32 [N, K/8], or [N, K/4] of 8 bits, the first code lowest, scales [N, K/g] and biases [N, K/g].

    Raises ValueError where the grid has zero points, or a bias is beyond the type of the scales.
    """
    if quantized.zero_points is not None:
        raise ValueError("MLX's biases round where a grid has zero points")
    biases = _biases(quantized.scales, quantized.bits)
    if not bool(biases.isfinite().all()):
        fold = "eightfold" if quantized.bits == 4 else "128-fold"
        raise ValueError(f"it has scales whose {fold} is beyond {quantized.scales.dtype}")
    return {
        "weight": pack_codes(quantized.codes, quantized.bits).view(torch.uint32),
        "scales": quantized.scales,
        "biases": biases,
    }


def unpack(tensors: Mapping[str, Tensor], bits: int = 4) -> Quantized:
    """Return what `pack` was given. Raises ValueError where a bias is that of another grid."""
    scales, packed = tensors["scales"], tensors["weight"].view(torch.int32)
    if not torch.equal(tensors["biases"], _biases(scales, bits)):
        raise ValueError("its biases are not those of a symmetric grid")
    return Quantized(codes=unpack_codes(packed, packed.shape[1] * 32 // bits, bits), scales=scales, bits=bits)


def _biases(scales: Tensor, bits: int) -> Tensor:
    return scales * -(1 << bits - 1) + 0.0  # + 0.0: a zero group's bias is not -0.0
