"""What a method does to one decoder layer, in place, once it is known what its linears are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from rayqd.model.calibration.producers import Producer, producer_of
from rayqd.model.calibration.statistics import Inputs
from rayqd.quant import Grid
from rayqd.quant.awq import clipped, scaled, search_scales
from rayqd.quant.gptq import gptq
from rayqd.quant.int4 import Int4Grid


class Method(Protocol):
    def __call__(self, layer: nn.Module, linears: Mapping[str, nn.Linear], inputs: Sequence[Inputs]) -> None:
        """Change `layer` so that rounding `linears`, named as in the model, to nearest gives the method's result."""
        ...


class GPTQ:
    def __init__(self, grid: Int4Grid, *, act_order: bool, damping: float) -> None:
        self._grid = grid
        self._act_order = act_order
        self._damping = damping

    def __call__(self, layer: nn.Module, linears: Mapping[str, nn.Linear], inputs: Sequence[Inputs]) -> None:
        """Rows are independent, so linears with the same inputs go together."""
        for each in inputs:
            together = [linear for name, linear in each.linears.items() if name in linears]
            if not together:
                continue
            rows = gptq(
                torch.cat([linear.weight for linear in together]),
                each.second_moment,
                self._grid,
                damping=self._damping,
                act_order=self._act_order,
                name=next(iter(each.linears)),
            )
            for linear, weight in zip(together, rows.split([len(m.weight) for m in together]), strict=True):
                linear.weight.copy_(weight)


class AWQ:
    def __init__(self, grid: Grid, *, clip: bool = True) -> None:
        self._grid = grid
        self._clip = clip

    def __call__(self, layer: nn.Module, linears: Mapping[str, nn.Linear], inputs: Sequence[Inputs]) -> None:
        for each in inputs:
            producer = producer_of(each, layer)
            if producer is not None:
                self._scale(producer, each, linears)
            if self._clip:
                self._draw_in(each, linears)

    def _scale(self, producer: Producer, inputs: Inputs, linears: Mapping[str, nn.Linear]) -> None:
        """Moves scales from the producer to all that it feeds; only what is quantized decides which."""
        weights = [linear.weight for name, linear in inputs.linears.items() if name in linears]
        if not weights:
            return
        scales = search_scales(weights, inputs.second_moment, inputs.magnitude, self._grid, producer.realized)
        producer.divide(scales)
        for linear in inputs.linears.values():
            linear.weight.copy_(scaled(linear.weight, scales))
        inputs.second_moment.div_(scales[:, None]).div_(scales)
        inputs.magnitude.div_(scales)

    def _draw_in(self, inputs: Inputs, linears: Mapping[str, nn.Linear]) -> None:
        """Not queries and keys, whose products decide: the reference found their outputs too sensitive."""
        for name, linear in inputs.linears.items():
            if name in linears and not _is_query_or_key(name):
                linear.weight.copy_(clipped(linear.weight, inputs.second_moment, self._grid))


def _is_query_or_key(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.startswith(("q_", "k_")) or "qkv" in leaf
