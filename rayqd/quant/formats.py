"""The number formats: one entry each, of the grid, its packed tensors, and the files that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rayqd.config.sections.quant import Format, QuantConfig
from rayqd.quant.blockwise import BlockwiseGrid
from rayqd.quant.codebooks import FP4, NF4, Codebook
from rayqd.quant.grid import Grid, Quantized
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.nvfp4 import NVFP4Grid
from rayqd.quant.packing import blockwise, int4, nvfp4


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """What a number format is, beside its name and its settings, which `QuantConfig` checks."""

    make_grid: Callable[[QuantConfig, torch.dtype], Grid]  # values in the dtype of the model
    pack: Callable[[Quantized], dict[str, Tensor]]
    unpack: Callable[[Mapping[str, Tensor]], Quantized]
    own_part: str  # of the packed tensors, the one by which they are told from another format's
    container: Literal["compressed-tensors", "bitsandbytes"]  # the files that hold it
    scheme: str = ""  # what compressed-tensors calls it
    scheme_weights: Mapping[str, str] = field(default_factory=dict[str, str])  # and says of its weights
    codebook: Codebook | None = None  # bitsandbytes


def _make_int4(quant: QuantConfig, dtype: torch.dtype) -> Grid:
    return Int4Grid(quant_group_size=quant.group_size, dtype=dtype, rule=quant.rule)


def _make_nvfp4(quant: QuantConfig, dtype: torch.dtype) -> Grid:
    return NVFP4Grid(dtype)


def _bitsandbytes(codebook: Codebook) -> NumberFormat:
    def make(quant: QuantConfig, dtype: torch.dtype) -> Grid:
        return BlockwiseGrid(
            quant_group_size=quant.group_size, dtype=dtype, codebook=codebook, double_quant=quant.double_quant
        )

    return NumberFormat(
        make_grid=make,
        pack=blockwise.pack,
        unpack=blockwise.unpack,
        own_part="weight_absmax",
        container="bitsandbytes",
        codebook=codebook,
    )


FORMATS: Mapping[Format, NumberFormat] = {
    "int4": NumberFormat(
        make_grid=_make_int4,
        pack=int4.pack,
        unpack=int4.unpack,
        own_part="weight_shape",
        container="compressed-tensors",
        scheme="pack-quantized",
        scheme_weights={"type": "int", "strategy": "group"},
    ),
    "nvfp4": NumberFormat(
        make_grid=_make_nvfp4,
        pack=nvfp4.pack,
        unpack=nvfp4.unpack,
        own_part="weight_global_scale",
        container="compressed-tensors",
        scheme="nvfp4-pack-quantized",
        scheme_weights={"type": "float", "strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"},
    ),
    "nf4": _bitsandbytes(NF4),
    "fp4": _bitsandbytes(FP4),
}


def make_grid(quant: QuantConfig, dtype: torch.dtype) -> Grid:
    """Return the grid that `quant` describes, with values in `dtype` (the model's dtype)."""
    return FORMATS[quant.format].make_grid(quant, dtype)


def pack(quantized: Quantized, format: Format = "int4") -> dict[str, Tensor]:
    """Return a weight of this `quant.format` as tensors, whose names all begin with `weight_`."""
    return FORMATS[format].pack(quantized)


def unpack(tensors: Mapping[str, Tensor]) -> Quantized:
    """Return what `pack` was given; the names tell the format."""
    return next(known.unpack for known in FORMATS.values() if known.own_part in tensors)(tensors)
