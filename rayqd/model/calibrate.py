"""GPTQ over a whole model, decoder layer by decoder layer, each on the outputs of the quantized layers before it.

Only the hidden states between two layers are held, T·d of them, and one layer's input statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rayqd.config.sections import Quant
from rayqd.errors import ConfigError, ModelError
from rayqd.quant import Grid, quantizable_layers
from rayqd.quant.gptq import gptq
from rayqd.quant.int4 import Int4Grid
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnLayer = Callable[[int, int], None]  # decoder layers done, of how many


@dataclass(slots=True)
class _Chunk:
    """Some sequences end to end: the hidden states that enter the next decoder layer, and each layer's keywords."""

    hidden: Tensor  # [1, T, d]
    keywords: list[dict[str, Any]]


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    quant: Quant,
    grid: Grid,
    sequences: Sequence[IntArray],
    *,
    max_batch_tokens: int,
    on_layer: OnLayer = lambda done, total: None,
) -> None:
    """Replace each quantizable linear's weight by one that `grid` rounds to GPTQ's codes, see `rayqd.quant.gptq`.

    `sequences` are token ids. They run at most `max_batch_tokens` at a time; a longer one runs alone. Linears outside
    the decoder layers, and those that no token reaches, keep their weights and so are rounded to nearest.

    Raises ConfigError when there are no sequences, ModelError when the model has no list of decoder layers.
    """
    if not isinstance(grid, Int4Grid):
        raise ConfigError(f"GPTQ needs quant.format=int4, got {quant.format}")
    if not any(len(ids) for ids in sequences):
        raise ConfigError("GPTQ needs at least one sequence to calibrate on, got none")
    layers = _decoder_layers(model)
    names = {linear: name for name, linear in quantizable_layers(model, quant).items()}
    chunks = [_enter(model, layers, part) for part in _chunked(sequences, max_batch_tokens)]
    for i, layer in enumerate(layers):
        linears = {names[m]: m for m in layer.modules() if isinstance(m, nn.Linear) and m in names}
        continuous = _continuous_weights(_input_statistics(linears, layer, i, chunks), linears, grid)
        if i + 1 < len(layers):
            for name, weight in continuous.items():
                linears[name].weight.copy_(grid.dequantize(grid.quantize(weight, name=name)))
            for chunk in chunks:
                chunk.hidden = _run(layer, i, chunk)
        for name, weight in continuous.items():
            linears[name].weight.copy_(weight)
        on_layer(i + 1, len(layers))


@dataclass(slots=True)
class _InputStatistics:
    """Sums of XᵀX, one for all linears that are given the same tensor."""

    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # [K, K] by the name of the first of them
    first: dict[str, str] = field(default_factory=dict[str, str])  # a linear's name -> that name
    latest: tuple[str, Tensor] | None = None

    def see(self, name: str, inputs: Tensor) -> None:
        if self.latest is None or self.latest[1] is not inputs:
            self.latest = (name, inputs)
            x = inputs.flatten(0, -2).float()
            self.sums[name] = self.sums[name].addmm_(x.mT, x) if name in self.sums else x.mT @ x
        self.first[name] = self.latest[0]


def _input_statistics(
    linears: dict[str, nn.Linear], layer: nn.Module, index: int, chunks: Sequence[_Chunk]
) -> _InputStatistics:
    statistics = _InputStatistics()

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: statistics.see(name, args[0])

    hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
    try:
        for chunk in chunks:
            _run(layer, index, chunk)
    finally:
        for hook in hooks:
            hook.remove()
    statistics.latest = None
    return statistics


def _continuous_weights(
    statistics: _InputStatistics, linears: dict[str, nn.Linear], grid: Int4Grid
) -> dict[str, Tensor]:
    """The new weights by name, in the layers' dtype; rows are independent, so linears with one input go together."""
    continuous: dict[str, Tensor] = {}
    for first, total in statistics.sums.items():
        together = [name for name, leader in statistics.first.items() if leader == first]
        weights = [linears[name].weight for name in together]
        rows = gptq(torch.cat(weights), total, grid, name=first).to(weights[0].dtype)
        continuous |= dict(zip(together, rows.split([len(weight) for weight in weights]), strict=True))
    return continuous


def _run(layer: nn.Module, index: int, chunk: _Chunk) -> Tensor:
    output = layer(chunk.hidden, **chunk.keywords[index])
    return output[0] if isinstance(output, tuple) else output


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"GPTQ does not find the decoder layers of {type(model).__name__}; start from rounding instead"
        )
    return layers


def _enter(model: PreTrainedModel, layers: nn.ModuleList, sequences: Sequence[IntArray]) -> _Chunk:
    """What the model itself hands to its decoder layers; between embedding and final norm nothing is computed."""
    where = next(model.parameters()).device
    lengths = [len(ids) for ids in sequences]
    ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None].to(where)
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None].to(where)
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    with _passing_through(layers, calls):
        model.base_model(input_ids=ids, position_ids=positions, lengths=lengths, use_cache=False)
    return _Chunk(hidden=calls[0][0], keywords=[keywords for _, keywords in calls])


@contextmanager
def _passing_through(layers: nn.ModuleList, calls: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[None]:
    """Decoder layers return what they are given, and write their calls down."""

    def forward(hidden_states: Tensor, **keywords: Any) -> Tensor:
        calls.append((hidden_states, keywords))
        return hidden_states

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _chunked(sequences: Sequence[IntArray], max_tokens: int) -> list[list[IntArray]]:
    """Sequences in order, in chunks of at most `max_tokens`; a longer one gets a chunk of its own."""
    chunks: list[list[IntArray]] = []
    room = 0
    for ids in sequences:
        if not chunks or len(ids) > room:
            chunks.append([])
            room = max_tokens
        chunks[-1].append(ids)
        room -= len(ids)
    return chunks
