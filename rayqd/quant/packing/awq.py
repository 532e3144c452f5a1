"""INT4 weights as the tensors of an AWQ checkpoint, in the packing that its authors call gemm.

Matrices are transposed, input features first. Eight numbers share an int32, all of them along the output features, in
an order of their own: the four even ones, then the four odd ones. A symmetric grid has the zero point 8 everywhere.

Shapes: N output features, K input features, g weights a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rayqd.quant.grid import Quantized
from rayqd.quant.packing.int4 import CODES_PER_INT32, pack_codes, unpack_codes

PARTS = ("qweight", "qzeros", "scales")
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PLACES = tuple(_ORDER.index(i) for i in range(CODES_PER_INT32))


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """Return qweight int32 [K, N/8], qzeros int32 [K/g, N/8] and scales [K/g, N]; 8 must divide N."""
    scales, zero_points = quantized.scales, quantized.zero_points
    zeros = torch.zeros_like(scales, dtype=torch.int8) if zero_points is None else zero_points
    return {
        "qweight": pack_codes(_reorder(quantized.codes.T, _ORDER)),
        "qzeros": pack_codes(_reorder(zeros.T, _ORDER)),
        "scales": scales.T.contiguous(),
    }


def unpack(tensors: Mapping[str, Tensor], *, symmetric: bool) -> Quantized:
    """Return what `pack` was given. Raises ValueError where zero points are not those of a symmetric grid."""
    scales = tensors["scales"].T.contiguous()
    num_rows = len(scales)
    codes, zeros = (
        unpack_order(unpack_codes(tensors[part], num_rows)).T.contiguous() for part in ("qweight", "qzeros")
    )
    if symmetric and bool(zeros.any()):
        raise ValueError("its zero points are not those of a symmetric grid")
    return Quantized(codes=codes, scales=scales, zero_points=None if symmetric else zeros)


def unpack_order(matrix: Tensor) -> Tensor:
    """Put the columns of [J, N], as they lie in the files, in the order of the output features."""
    return _reorder(matrix, _PLACES)


def _reorder(matrix: Tensor, order: tuple[int, ...]) -> Tensor:
    """Put the columns of [J, N] in another order within every eight."""
    eights = matrix.reshape(len(matrix), -1, CODES_PER_INT32)
    return eights[:, :, list(order)].reshape(matrix.shape)
