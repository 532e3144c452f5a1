"""GPTQ, AWQ and MLX as their formats are published: float64 loops over every weight, which share nothing with rayqd."""

from __future__ import annotations

import numpy as np
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ, awq/modules/linear/gemm.py: order_map


def sixteen_bit(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy().astype(np.float64)


def unpack_gptq(tensors: dict[str, Tensor], *, zero_offset: int) -> np.ndarray:
    """GPTQModel's dequantization (qlinear/torch.py) as a float64 loop over every weight; returns [N, K]."""
    qweight, qzeros = (tensors[part].numpy().view(np.uint32) for part in ("qweight", "qzeros"))
    scales, groups = sixteen_bit(tensors["scales"]), tensors["g_idx"].numpy()
    num_columns, num_rows = qweight.shape[0] * 8, qweight.shape[1]
    values = np.empty((num_rows, num_columns))
    for k in range(num_columns):
        for n in range(num_rows):
            code = int(qweight[k // 8, n]) >> 4 * (k % 8) & 15
            zero = (int(qzeros[groups[k], n // 8]) >> 4 * (n % 8) & 15) + zero_offset
            values[n, k] = (code - zero) * scales[groups[k], n]
    return values


def unpack_awq(tensors: dict[str, Tensor], group_size: int) -> np.ndarray:
    """AutoAWQ's packing (awq/modules/linear/gemm.py) undone as a float64 loop over every weight; returns [N, K]."""
    qweight, qzeros = (tensors[part].numpy().view(np.uint32) for part in ("qweight", "qzeros"))
    scales = sixteen_bit(tensors["scales"])
    num_columns, num_rows = qweight.shape[0], qweight.shape[1] * 8
    values = np.empty((num_rows, num_columns))
    for k in range(num_columns):
        for column in range(num_rows // 8):
            for place, row in enumerate(AWQ_ORDER):
                n = column * 8 + row
                code = int(qweight[k, column]) >> 4 * place & 15
                zero = int(qzeros[k // group_size, column]) >> 4 * place & 15
                values[n, k] = (code - zero) * scales[k // group_size, n]
    return values


def unpack_mlx(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, group_size: int) -> np.ndarray:
    """MLX's affine form (documentation of mlx.core.quantize) as a float64 loop over every weight; returns [N, K]."""
    num_rows, num_columns = packed.shape[0], packed.shape[1] * 8
    values = np.empty((num_rows, num_columns))
    for n in range(num_rows):
        for k in range(num_columns):
            code = int(packed[n, k // 8]) >> 4 * (k % 8) & 15
            values[n, k] = scales[n, k // group_size] * code + biases[n, k // group_size]
    return values
