"""Quantized weights as named tensors, two codes to a byte: what travels to the rollout workers and lies in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from rayqd.quant.grid import Quantized
from rayqd.quant.packing import blockwise, int4, nvfp4

__all__ = ["pack", "unpack"]

Format = Literal["int4", "nvfp4", "nf4", "fp4"]

_PACKERS: Mapping[Format, Callable[[Quantized], dict[str, Tensor]]] = {
    "int4": int4.pack,
    "nvfp4": nvfp4.pack,
    "nf4": blockwise.pack,
    "fp4": blockwise.pack,
}


def pack(quantized: Quantized, format: Format = "int4") -> dict[str, Tensor]:
    """The tensors of a weight, whose names all begin with `weight_`; the format is quant.format."""
    return _PACKERS[format](quantized)


def unpack(tensors: Mapping[str, Tensor]) -> Quantized:
    """The inverse of `pack`; the names tell the format."""
    if "weight_global_scale" in tensors:
        return nvfp4.unpack(tensors)
    if "weight_absmax" in tensors:
        return blockwise.unpack(tensors)
    return int4.unpack(tensors)
