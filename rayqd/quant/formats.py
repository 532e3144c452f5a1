"""Which grid a configuration describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rayqd.config.sections import QuantConfig
from rayqd.quant.blockwise import BlockwiseGrid, Codebook
from rayqd.quant.fp4 import FP4
from rayqd.quant.grid import Grid
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.nf4 import NF4
from rayqd.quant.nvfp4 import NVFP4Grid


def make_grid(quant: QuantConfig, dtype: torch.dtype) -> Grid:
    """The grid that `quant` describes, with values in `dtype` (the model's dtype)."""
    return _MAKERS[quant.format](quant, dtype)


def _int4(quant: QuantConfig, dtype: torch.dtype) -> Grid:
    return Int4Grid(quant_group_size=quant.group_size, dtype=dtype, rule=quant.rule)


def _nvfp4(quant: QuantConfig, dtype: torch.dtype) -> Grid:
    return NVFP4Grid(dtype)


def _blockwise(codebook: Codebook) -> Callable[[QuantConfig, torch.dtype], Grid]:
    def make(quant: QuantConfig, dtype: torch.dtype) -> Grid:
        return BlockwiseGrid(
            quant_group_size=quant.group_size, dtype=dtype, codebook=codebook, double_quant=quant.double_quant
        )

    return make


_MAKERS: Mapping[str, Callable[[QuantConfig, torch.dtype], Grid]] = {
    "int4": _int4,
    "nvfp4": _nvfp4,
    "nf4": _blockwise(NF4),
    "fp4": _blockwise(FP4),
}
