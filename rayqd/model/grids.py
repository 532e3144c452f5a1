"""Which grid each layer of a model rounds on: the same for all, but for NVFP4's scale of a whole tensor.

Inference engines fuse the layers that read the same input into one matrix with one such scale, so those share theirs.
It is taken from the first weights, and stays there: a run that is resumed from them has the same one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rayqd.quant import Grid
from rayqd.quant.groups import check_finite
from rayqd.quant.nvfp4 import NVFP4Grid, choose_tensor_scale

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# How far weights may grow before their largest group saturates. It costs nothing: the scales under it are floats too.
HEADROOM = 2


def assign_grids(weights: Mapping[str, Tensor], grid: Grid) -> dict[str, Grid]:
    """Return the grid of each layer by its name; layers that are fused share one. Raises ModelError at inf or nan."""
    if not isinstance(grid, NVFP4Grid):
        return dict.fromkeys(weights, grid)
    largest: dict[tuple[str, ...], Tensor] = {}
    for name, weight in weights.items():
        amax = _absmax(weight, name)
        key = fused_layer_names(name)
        largest[key] = torch.maximum(largest[key], amax) if key in largest else amax
    shared = {key: NVFP4Grid(grid.dtype, choose_tensor_scale(amax) * HEADROOM) for key, amax in largest.items()}
    return {name: shared[fused_layer_names(name)] for name in weights}


def fused_layer_names(name: str) -> tuple[str, ...]:
    """Return the names of the layers that an engine fuses with the layer `name`, itself included."""
    parent, dot, leaf = name.rpartition(".")
    together = next((leaves for leaves in FUSED if leaf in leaves), (leaf,))
    return tuple(f"{parent}{dot}{leaf}" for leaf in together)


@torch.no_grad()
def _absmax(weight: Tensor, name: str) -> Tensor:
    low, high = weight.aminmax()
    amax = torch.maximum(high, -low).float()
    check_finite(weight, amax.reshape(1, 1), name=name)
    return amax
