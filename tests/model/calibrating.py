"""Token ids to calibrate on, and how far a quantized model is from the dense one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rayqd.config.sections import QuantConfig
from rayqd.quant import Grid, make_grid, quantizable_layers
from rayqd.types import IntArray

QUANT = QuantConfig(group_size=32)
GRID = make_grid(QUANT, torch.bfloat16)


def sequences(num: int = 24, seed: int = 0) -> list[IntArray]:
    """Token ids of lengths 5 to 40."""
    random = np.random.default_rng(seed)
    return [random.integers(3, 128, int(n), dtype=np.int32) for n in random.integers(5, 41, num)]


def logits(model: Any, ids: IntArray) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], lengths=[len(ids)]).logits[0].float()


def quantized(model: Any, quant: QuantConfig = QUANT, grid: Grid = GRID) -> Any:
    """The model with its codes' values as weights."""
    for linear in quantizable_layers(model, quant).values():
        linear.weight.data = grid.fake_quantize(linear.weight.data)
    return model


def kl_to(dense: Any, student: Any) -> float:
    """Mean KL(dense‖student) on sequences that calibration has not seen."""
    held_out = sequences(16, seed=1)
    pairs = [(logits(dense, ids).log_softmax(-1), logits(student, ids).log_softmax(-1)) for ids in held_out]
    return float(torch.cat([F.kl_div(q, p, reduction="none", log_target=True).sum(-1) for p, q in pairs]).mean())
