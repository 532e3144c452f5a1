"""Which grid a configuration describes."""

from __future__ import annotations

import torch

from rayqd.config.sections import Quant
from rayqd.quant.grid import Grid
from rayqd.quant.int4 import Int4Grid


def make_grid(quant: Quant, dtype: torch.dtype) -> Grid:
    """The grid that `quant` describes, with scales and values in `dtype` (the model's dtype)."""
    return Int4Grid(quant_group_size=quant.group_size, dtype=dtype, rule=quant.rule)
