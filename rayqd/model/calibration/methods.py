"""The calibration methods: each changes one decoder layer in place, given the statistics of its linears' inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from rayqd.model.calibration.expert_statistics import ExpertStatistics
from rayqd.model.calibration.neutrality import is_neutral
from rayqd.model.calibration.previous_op import PreviousOp, find_previous_op
from rayqd.model.calibration.statistics import InputStatistics
from rayqd.quant import Grid
from rayqd.quant.awq import clip_groups, scale_columns, search_scales
from rayqd.quant.gptq import gptq
from rayqd.quant.int4 import Int4Grid


class Method(Protocol):
    """A calibration method."""

    def __call__(
        self,
        layer: nn.Module,
        linears: Mapping[str, nn.Linear],
        inputs: Sequence[InputStatistics],
        compute: Callable[[], Tensor] | None = None,
    ) -> None:
        """Change `layer` so that rounding `linears`, named as in the model, to nearest gives the method's result.

        `compute` returns what the layer adds to some hidden states.
        """
        ...

    def change_experts(self, statistics: ExpertStatistics) -> None:
        """Change the weights of the experts that saw tokens."""
        ...


class GPTQ:
    """GPTQ (Frantar et al. 2023) of each linear layer; see `rayqd.quant.gptq`."""

    def __init__(self, grid: Int4Grid, *, act_order: bool, damping: float) -> None:
        self._grid = grid
        self._act_order = act_order
        self._damping = damping

    def __call__(
        self,
        layer: nn.Module,
        linears: Mapping[str, nn.Linear],
        inputs: Sequence[InputStatistics],
        compute: Callable[[], Tensor] | None = None,
    ) -> None:
        """Rows are independent, so linears with the same inputs go together."""
        for statistics in inputs:
            together = [linear for name, linear in statistics.linears.items() if name in linears]
            if not together:
                continue
            weight = torch.cat([linear.weight for linear in together])
            rows = self._round(weight, statistics.second_moment, next(iter(statistics.linears)))
            for linear, weight in zip(together, rows.split([len(m.weight) for m in together]), strict=True):
                linear.weight.copy_(weight)

    def change_experts(self, statistics: ExpertStatistics) -> None:
        """Round each expert on the tokens that are routed to it."""
        for e, second_moment in enumerate(statistics.second_moments):
            if statistics.num_tokens[e]:
                weight = statistics.weight[e]
                weight.copy_(self._round(weight, second_moment, f"{statistics.name}[{e}]"))

    def _round(self, weight: Tensor, second_moment: Tensor, name: str) -> Tensor:
        return gptq(weight, second_moment, self._grid, damping=self._damping, act_order=self._act_order, name=name)


class AWQ:
    """AWQ (Lin et al. 2023): scales of input channels, then clipping; see `rayqd.quant.awq`."""

    def __init__(self, grid: Grid, *, clip: bool = True, on_remark: Callable[[str], None] = lambda text: None) -> None:
        """Make the method; `on_remark` is told of layers that cannot be scaled, each kind once."""
        self._grid = grid
        self._clip = clip
        self._on_remark = on_remark
        self._tried: dict[tuple[str, ...], bool] = {}  # by the names of linears within their layer

    def __call__(
        self,
        layer: nn.Module,
        linears: Mapping[str, nn.Linear],
        inputs: Sequence[InputStatistics],
        compute: Callable[[], Tensor] | None = None,
    ) -> None:
        """Scale where the previous op allows it, and clip, in the order in which the layer computes."""
        for statistics in inputs:
            previous = find_previous_op(statistics, layer)
            if previous is not None and (compute is None or self._is_neutral(previous, statistics, layer, compute)):
                self._scale(previous, statistics, linears)
            if self._clip:
                self._clip_weights(statistics, linears)

    def change_experts(self, statistics: ExpertStatistics) -> None:
        """Clip each expert on the tokens that are routed to it."""
        for e, second_moment in enumerate(statistics.second_moments):
            if self._clip and statistics.num_tokens[e]:
                weight = statistics.weight[e]
                weight.copy_(clip_groups(weight, second_moment, self._grid))

    def _is_neutral(
        self, previous: PreviousOp, inputs: InputStatistics, layer: nn.Module, compute: Callable[[], Tensor]
    ) -> bool:
        """Try it once for each kind of layer, by the names of its linears."""
        kind = tuple(_within_layer(name, layer, linear) for name, linear in inputs.linears.items())
        if kind not in self._tried:
            self._tried[kind] = is_neutral(previous, list(inputs.linears.values()), layer, compute)
            if not self._tried[kind]:
                self._on_remark(
                    f"AWQ leaves {', '.join(kind)} unscaled: what they read is read by something else in the layer, too"
                )
        return self._tried[kind]

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


def _within_layer(name: str, layer: nn.Module, linear: nn.Linear) -> str:
    return next((within for within, module in layer.named_modules() if module is linear), name)


def _is_query_or_key(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return leaf.startswith(("q_", "k_")) or "qkv" in leaf
