"""Blocks of columns for the kernels of GPTQ's recursion: one whose sums are exact in any order, and a usual one."""

from __future__ import annotations

import torch
from torch import Tensor

from rayqd.quant.gptq.columns import ColumnScales


def targets_of(scales: Tensor) -> ColumnScales:
    """Limits of -8 and 7, tighter for some; no anchors."""
    fewest, most = torch.full_like(scales, -8), torch.full_like(scales, 7)
    fewest[::3, ::2], most[1::3, ::2] = -5, 4
    nothing = torch.zeros_like(scales)
    return ColumnScales(scales, nothing, nothing, fewest, most, nothing.bool(), nothing)


def make_exact_block(num_columns: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns and scales [b, N], and the factor as the first b columns of a wider matrix.

    Weights are multiples of 1/64, scales and U's diagonal powers of two, and few columns change others.
    """
    generator = torch.Generator().manual_seed(num_columns)
    columns = torch.randint(-512, 512, (num_columns, num_rows), generator=generator) / 64
    scales = 2.0 ** torch.randint(-2, 2, columns.shape, generator=generator)
    scales *= torch.randint(0, 2, columns.shape, generator=generator) * 2 - 1
    wide = torch.zeros(num_columns, num_columns + 5)
    factor = wide[:, :num_columns]
    factor[:, ::7] = torch.randint(-2, 3, (num_columns, len(range(0, num_columns, 7))), generator=generator) / 2
    factor[::7] = 0  # those that others change change none: nothing grows
    factor.triu_(1).diagonal().copy_(2.0 ** torch.randint(-1, 2, (num_columns,), generator=generator))
    return columns, scales, wide


def make_usual_block() -> tuple[Tensor, Tensor]:
    """128 columns of 80 random weights, and the factor of inputs that hang together a little."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(128, 80, generator=generator)
    mixing = torch.eye(128) + 0.02 * torch.randn(128, 128, generator=generator)
    inputs = torch.randn(512, 128, generator=generator) @ mixing
    factor = torch.linalg.cholesky(torch.linalg.inv(inputs.double().mT @ inputs.double()), upper=True).float()
    return columns, factor
