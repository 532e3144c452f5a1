"""INT4 weights, and INT8 heads, as the tensors of a GPTQ checkpoint, whose matrices are transposed: inputs first.

Eight numbers share an int32, the first lowest: codes, stored as code + 8, along the input features, zero points along
the output features; of 8 bits four do, as code + 128. Version 1 of the layout, `gptq`, stores zero points less one, and
readers differ over what that makes of a zero point of 0; so it holds symmetric grids, whose zero point is 8. `gptq_v2`
stores them as they are.

Shapes: N output features, K input features, g weights a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized
from rayqd.quant.packing.int4 import pack_codes, unpack_codes

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_V1_ZERO = -1  # `pack_codes` adds 8, or 128: a symmetric grid's zero point, less one


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """Return qweight int32 [K/8, N], qzeros int32 [K/g, N/8], scales [K/g, N] and g_idx int32 [K], a column's group."""
    scales, zero_points = quantized.scales, quantized.zero_points
    zeros = torch.full_like(scales, _V1_ZERO, dtype=torch.int8) if zero_points is None else zero_points
    columns = torch.arange(quantized.codes.shape[1], dtype=torch.int32, device=scales.device)
    return {
        "qweight": pack_codes(quantized.codes, quantized.bits).T.contiguous(),
        "qzeros": pack_codes(zeros.T.contiguous(), quantized.bits),
        "scales": scales.T.contiguous(),
        "g_idx": columns // quantized.quant_group_size,
    }


def unpack(tensors: Mapping[str, Tensor], *, symmetric: bool) -> Quantized:
    """Return what `pack` was given. Raises ValueError where a column's group, or a symmetric zero point, is another."""
    scales = tensors["scales"].T.contiguous()
    num_rows, num_groups = scales.shape
    num_columns = len(tensors["g_idx"])
    bits = 32 * tensors["qweight"].shape[0] // num_columns
    codes = unpack_codes(tensors["qweight"].T.contiguous(), num_columns, bits)
    in_order = torch.arange(num_columns) // (num_columns // num_groups)
    if not torch.equal(tensors["g_idx"].cpu().long(), in_order):
        raise ValueError("its columns are out of order (desc_act)")
    zeros = unpack_codes(tensors["qzeros"], num_rows, bits).T.contiguous()
    if symmetric and not bool((zeros == _V1_ZERO).all()):
        raise ValueError("its zero points are not those of a symmetric grid")
    return Quantized(codes=codes, scales=scales, zero_points=None if symmetric else zeros, bits=bits)
