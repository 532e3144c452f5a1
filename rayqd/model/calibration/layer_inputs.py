"""The calibration sequences' hidden states before one decoder layer after the other, several sequences end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rayqd.model.forward.batches import batch_rows
from rayqd.model.forward.call import inputs_of_rows
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.rotary import reset_frequencies
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Share of the GPU's free memory that the hidden states may take; more of them wait in the host's.
SHARE_OF_GPU = 0.25

HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class _LayerCall:
    """What the model calls a decoder layer with."""

    hidden: Tensor  # [1, T, d], or [sequences, L, d] where they cannot go end to end
    positions: tuple[object, ...]  # of whatever the architecture hands down without a name, after the hidden states
    keywords: object  # a dictionary of all else


@dataclass(slots=True)
class _Batch:
    """Some sequences in one call: the hidden states that enter the next decoder layer, and each layer's keywords."""

    hidden: Tensor  # [1, T, d], or [sequences, L, d]
    positions: list[Any]  # a tuple a layer
    keywords: list[Any]  # a dictionary a layer


class LayerInputs:
    """Hidden states before one decoder layer, which `advance` takes to the next.

    They are kept where the model is, or in the host's memory when that is a GPU and they would take much of it; then
    one batch at a time comes to the GPU.
    """

    def __init__(
        self, model: PreTrainedModel, layers: nn.ModuleList, sequences: Sequence[IntArray], max_batch_tokens: int
    ) -> None:
        self._layers = layers
        self._device = next(model.parameters()).device
        num_tokens = sum(len(ids) for ids in sequences)
        self._storage = choose_storage(self._device, num_tokens * _bytes_per_token(model))
        # No padding, which would count as inputs of the layers: what is not packed shares a batch at equal lengths.
        batches = batch_rows(model, [len(ids) for ids in sequences], max_batch_tokens, allow_padding=False)
        self._batches = [self._embed(model, [sequences[i] for i in batch]) for batch in batches]

    @property
    def hidden(self) -> list[Tensor]:
        """Return the hidden states of each batch."""
        return [batch.hidden for batch in self._batches]

    def run(self, index: int) -> None:
        """Send all batches through layer `index`, for the hooks in it; the hidden states stay before it."""
        for batch in self._batches:
            self._forward(index, batch)

    def compute_change(self, index: int) -> Tensor:
        """Return what layer `index` adds to one batch, [1, T, d], in float32."""
        batch = min(self._batches, key=lambda each: each.hidden.numel())
        return self._forward(index, batch).float() - batch.hidden.to(self._device).float()

    def advance(self, index: int) -> None:
        """Replace the inputs of layer `index` by its outputs."""
        for batch in self._batches:
            batch.hidden = self._forward(index, batch).to(self._storage)

    def _forward(self, index: int, batch: _Batch) -> Tensor:
        positions, keywords = move_to((batch.positions[index], batch.keywords[index]), self._device, {})
        output = self._layers[index](batch.hidden.to(self._device), *positions, **keywords)
        return output[0] if isinstance(output, tuple) else output

    def _embed(self, model: PreTrainedModel, sequences: Sequence[IntArray]) -> _Batch:
        """Record what the model calls its decoder layers with; between embedding and final norm nothing is computed."""
        rows = [torch.from_numpy(ids.astype(np.int64)) for ids in sequences]
        reset_frequencies(model)
        with _record_layer_calls(self._layers) as calls:
            model.base_model(use_cache=False, **inputs_of_rows(model, rows, mode_of(model)))
        positions, keywords = move_to(
            ([call.positions for call in calls], [call.keywords for call in calls]), self._storage, {}
        )
        return _Batch(hidden=calls[0].hidden.to(self._storage), positions=positions, keywords=keywords)


def choose_storage(device: torch.device, num_bytes: int) -> torch.device:
    """Return the device that keeps `num_bytes` of hidden states: `device`, or the host where they would fill it."""
    if device.type != "cuda":
        return device
    return device if num_bytes <= SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0] else HOST


def move_to(value: Any, device: torch.device, seen: dict[int, Tensor]) -> Any:
    """Return `value` with the tensors in its lists and dictionaries on `device`; a tensor in two places stays one.

    `seen` are the moved tensors by the `id` of the original.
    """
    if isinstance(value, dict):
        return {key: move_to(member, device, seen) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move_to(member, device, seen) for member in value)
    if not isinstance(value, Tensor):
        return value
    if id(value) not in seen:
        seen[id(value)] = value.to(device)
    return seen[id(value)]


def _bytes_per_token(model: PreTrainedModel) -> int:
    return model.config.get_text_config().hidden_size * next(model.parameters()).element_size()


@contextmanager
def _record_layer_calls(layers: nn.ModuleList) -> Iterator[list[_LayerCall]]:
    """Make decoder layers return their inputs, and yield the list to which each call is added."""
    calls: list[_LayerCall] = []
    own_forward = layers[0].forward
    others: list[int] = []  # how many values a layer returns beside the hidden states; -1: it returns no tuple

    def forward(hidden_states: Tensor, *positions: Any, **keywords: Any) -> Any:
        if not others:
            output = own_forward(hidden_states, *positions, **keywords)
            others.append(len(cast("tuple[Any, ...]", output)) - 1 if isinstance(output, tuple) else -1)
        calls.append(_LayerCall(hidden_states, positions, keywords))
        return hidden_states if others[0] < 0 else (hidden_states, *(None for _ in range(others[0])))

    for layer in layers:
        layer.forward = forward
    try:
        yield calls
    finally:
        for layer in layers:
            del layer.forward
