"""The calibration sequences on their way through the decoder layers, some of them end to end at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rayqd.model import packed
from rayqd.model.states import batches_of
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Share of the GPU's free memory that the hidden states may take; more of them wait in the host's.
SHARE_OF_GPU = 0.25

HOST = torch.device("cpu")


@dataclass(slots=True)
class _Chunk:
    """Some sequences end to end: the hidden states that enter the next decoder layer, and each layer's keywords."""

    hidden: Tensor  # [1, T, d]
    keywords: list[dict[str, Any]]


class Stream:
    """Hidden states before one decoder layer after the other.

    They wait where the model is, or in the host's memory when that is a GPU and they would take much of it; then one
    chunk at a time comes to the GPU.
    """

    def __init__(
        self, model: PreTrainedModel, layers: nn.ModuleList, sequences: Sequence[IntArray], max_batch_tokens: int
    ) -> None:
        self._layers = layers
        self._device = next(model.parameters()).device
        num_tokens = sum(len(ids) for ids in sequences)
        self._home = home(self._device, num_tokens * _bytes_a_token(model))
        batches = batches_of([len(ids) for ids in sequences], max_batch_tokens)
        self._chunks = [self._enter(model, [sequences[i] for i in batch]) for batch in batches]

    def run(self, index: int) -> None:
        """All chunks through layer `index`, for what watches it; the hidden states stay before it."""
        for chunk in self._chunks:
            self._output(index, chunk)

    def advance(self, index: int) -> None:
        """All hidden states to behind layer `index`."""
        for chunk in self._chunks:
            chunk.hidden = self._output(index, chunk).to(self._home)

    def _output(self, index: int, chunk: _Chunk) -> Tensor:
        keywords = moved(chunk.keywords[index], self._device, {})
        output = self._layers[index](chunk.hidden.to(self._device), **keywords)
        return output[0] if isinstance(output, tuple) else output

    def _enter(self, model: PreTrainedModel, sequences: Sequence[IntArray]) -> _Chunk:
        """What the model itself hands to its decoder layers; between embedding and final norm nothing is computed."""
        lengths = [len(ids) for ids in sequences]
        ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64))[None].to(self._device)
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None].to(self._device)
        calls: list[tuple[Tensor, dict[str, Any]]] = []
        with _passing_through(self._layers, calls):
            model.base_model(input_ids=ids, position_ids=positions, use_cache=False, **packed.keywords(lengths, model))
        keywords = moved([keywords for _, keywords in calls], self._home, {})
        return _Chunk(hidden=calls[0][0].to(self._home), keywords=keywords)


def home(device: torch.device, num_bytes: int) -> torch.device:
    """Where `num_bytes` of hidden states wait."""
    if device.type != "cuda":
        return device
    return device if num_bytes <= SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0] else HOST


def moved(value: Any, device: torch.device, seen: dict[int, Any]) -> Any:
    """`value` with its tensors on `device`; what the layers share stays one tensor."""
    if isinstance(value, dict):
        return {key: moved(each, device, seen) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(each, device, seen) for each in value)
    if not isinstance(value, Tensor):
        return value
    if id(value) not in seen:
        seen[id(value)] = value.to(device)
    return seen[id(value)]


def _bytes_a_token(model: PreTrainedModel) -> int:
    return model.config.get_text_config().hidden_size * next(model.parameters()).element_size()


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
