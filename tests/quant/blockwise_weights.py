"""Grids and weights for NF4 and FP4, and their bits."""

from __future__ import annotations

from typing import Any

import bitsandbytes.functional as bnb
import torch

from rayqd.config.sections import QuantConfig
from rayqd.quant import make_grid
from rayqd.quant.blockwise import BlockwiseGrid
from rayqd.quant.codebooks import FP4, NF4

CODEBOOKS = {"nf4": NF4, "fp4": FP4}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INT_VIEW = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def grid_of(
    form: str, *, group_size: int = 32, dtype: torch.dtype = torch.bfloat16, double_quant: bool = False
) -> BlockwiseGrid:
    quant = QuantConfig.model_validate({"format": form, "group_size": group_size, "double_quant": double_quant})
    grid = make_grid(quant, dtype)
    assert isinstance(grid, BlockwiseGrid)
    return grid


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INT_VIEW[tensor.dtype])


def random_weight(dtype: torch.dtype = torch.float32, num_rows: int = 48, num_columns: int = 512) -> torch.Tensor:
    """Rows of different size, one of zeros, one very small."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(num_rows, 1, generator=generator).exp()
    weight = torch.randn(num_rows, num_columns, generator=generator) * sizes * 0.05
    weight[0] = 0.0
    weight[1] *= 1e-4
    return weight.to(dtype)


def quantize_4bit(weight: torch.Tensor, form: str, group_size: int, double_quant: bool) -> tuple[torch.Tensor, Any]:
    return bnb.quantize_4bit(weight, blocksize=group_size, quant_type=form, compress_statistics=double_quant)
