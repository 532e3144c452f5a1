"""Weights for NVFP4, and their bits."""

from __future__ import annotations

import torch

from rayqd.quant.nvfp4 import NVFP4Grid

INT_VIEW = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INT_VIEW[tensor.dtype])


def random_weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of very different size, one of zeros, one so small that its scales are the least."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(2 * torch.randn(64, 1, generator=generator))
    weight = torch.randn(64, 256, generator=generator) * sizes * 0.01
    weight[0] = 0.0
    weight[1] *= 1e-6
    return weight.to(dtype)


def make(dtype: torch.dtype, tensor_scale: float | None) -> NVFP4Grid:
    return NVFP4Grid(dtype, None if tensor_scale is None else torch.tensor(tensor_scale))
