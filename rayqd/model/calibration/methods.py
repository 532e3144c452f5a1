"""The calibration methods: each changes one decoder layer in place, given the statistics of its linears' inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from rayqd.model.calibration.previous_op import PreviousOp, find_previous_op
from rayqd.model.calibration.statistics import InputStatistics
from rayqd.quant import Grid
from rayqd.quant.awq import clip_groups, scale_columns, search_scales
from rayqd.quant.gptq import gptq
from rayqd.quant.int4 import Int4Grid


class Method(Protocol):
    """A calibration method."""

    def __call__(self, layer: nn.Module, linears: Mapping[str, nn.Linear], inputs: Sequence[InputStatistics]) -> None:
        """Change `layer` so that rounding `linears`, named as in the model, to nearest gives the method's result."""
        ...


class GPTQ:
    """GPTQ (Frantar et al. 2023) of each linear layer; see `rayqd.quant.gptq`."""

    def __init__(self, grid: Int4Grid, *, act_order: bool, damping: float) -> None:
        self._grid = grid
        self._act_order = act_order
        self._damping = damping

    def __call__(self, layer: nn.Module, linears: Mapping[str, nn.Linear], inputs: Sequence[InputStatistics]) -> None:
        """Rows are independent, so linears with the same inputs go together."""
        for statistics in inputs:
            together = [linear for name, linear in statistics.linears.items() if name in linears]
            if not together:
                continue
            rows = gptq(
                torch.cat([linear.weight for linear in together]),
                statistics.second_moment,
                self._grid,
                damping=self._damping,
                act_order=self._act_order,
                name=next(iter(statistics.linears)),
            )
            for linear, weight in zip(together, rows.split([len(m.weight) for m in together]), strict=True):
                linear.weight.copy_(weight)


class AWQ:
    """AWQ (Lin et al. 2023): scales of input channels, then clipping; see `rayqd.quant.awq`."""

    def __init__(self, grid: Grid, *, clip: bool = True) -> None:
        self._grid = grid
        self._clip = clip

    def __call__(self, layer: nn.Module, linears: Mapping[str, nn.Linear], inputs: Sequence[InputStatistics]) -> None:
        """Scale where the previous op allows it, and clip, in the order in which the layer computes."""
        for statistics in inputs:
            previous = find_previous_op(statistics, layer)
            if previous is not None:
                self._scale(previous, statistics, linears)
            if self._clip:
                self._clip_weights(statistics, linears)

    def _scale(self, previous: PreviousOp, inputs: InputStatistics, linears: Mapping[str, nn.Linear]) -> None:
        """Move scales from the previous op to all linears that read it; only those in `linears` decide which."""
        weights = [linear.weight for name, linear in inputs.linears.items() if name in linears]
        if not weights:
            return
        scales = search_scales(weights, inputs.second_moment, inputs.magnitude, self._grid, previous.round_scales)
        previous.divide_outputs(scales)
        for linear in inputs.linears.values():
            linear.weight.copy_(scale_columns(linear.weight, scales))
        inputs.second_moment.div_(scales[:, None]).div_(scales)
        inputs.magnitude.div_(scales)

    def _clip_weights(self, inputs: InputStatistics, linears: Mapping[str, nn.Linear]) -> None:
        """Leave out queries and keys, whose products decide: the reference found their outputs too sensitive."""
        for name, linear in inputs.linears.items():
            if name in linears and not _is_query_or_key(name):
                linear.weight.copy_(clip_groups(linear.weight, inputs.second_moment, self._grid))


def _is_query_or_key(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.startswith(("q_", "k_")) or "qkv" in leaf
