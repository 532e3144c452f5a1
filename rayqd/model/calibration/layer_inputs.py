"""The calibration sequences' hidden states before one decoder layer after the other, several sequences end to end.

Where memory does not suffice for a call, its sequences go in smaller ones from then on, which changes no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from rayqd.model.forward.batches import batch_rows
from rayqd.model.forward.call import inputs_of_rows
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.rotary import reset_frequencies
from rayqd.model.token_limit import TokenLimit
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

MakeWeights = Callable[[], Mapping[str, Tensor]]

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

    group: int
    numbers: list[int]  # which sequences these are
    lengths: list[int]  # of each
    hidden: Tensor  # [1, T, d], or [sequences, L, d]
    positions: list[Any]  # a tuple a layer
    keywords: list[Any]  # a dictionary a layer

    @property
    def by_number(self) -> dict[int, Tensor]:
        """Return each sequence's hidden states, [L, d]."""
        return dict(zip(self.numbers, self.hidden.flatten(0, 1).split(self.lengths), strict=True))


class LayerInputs:
    """Hidden states before one decoder layer, which `advance` takes to the next.

    They are kept where the model is, or in the host's memory when that is a GPU and they would take much of it; then
    one batch at a time comes to the GPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: nn.ModuleList,
        sequences: Sequence[IntArray],
        limit: TokenLimit,
        embedding: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        group_tokens: float = math.inf,
    ) -> None:
        """Embed `sequences`, at most `limit` at a time, in the context that `embedding` makes.

        Groups are of as many as have `group_tokens` together, whatever the limit is; a longer one is its own. Raises
        WorkerError, here and later, where a sequence alone does not fit in memory.
        """
        self._model, self._layers, self._limit, self._embedding = model, layers, limit, embedding
        self._device = next(model.parameters()).device
        num_tokens = sum(len(ids) for ids in sequences)
        self._storage = choose_storage(self._device, num_tokens * _bytes_per_token(model))
        self._under_way: list[int] = []  # lengths of the sequences in the call under way
        self._batches: list[_Batch] = []
        self._sequences = sequences
        groups = _group(self._lengths(range(len(sequences))), group_tokens)
        self.num_groups = len(groups)
        waiting = [(number, part) for number, group in enumerate(groups) for part in self._split(group)]
        while waiting:
            done = limit.attempt(partial(self._embed, *waiting[0]), self._lengths(waiting[0][1]))
            if done is None:
                waiting = [(number, part) for number, batch in waiting for part in self._split(batch)]
            else:
                self._batches.append(done.result)
                waiting.pop(0)

    @property
    def hidden(self) -> list[Tensor]:
        """Return the hidden states of each batch."""
        return [batch.hidden for batch in self._batches]

    def run(self, index: int) -> None:
        """Send all batches through layer `index`, for the hooks in it; the hidden states stay before it."""
        for batch in self._batches:
            self._forward(index, batch)

    def collect(self, record: Callable[[], T]) -> T:
        """Return what `record` returns, which calls `run` once.

        It is called anew where memory ran out half way, as its hooks have counted some of that call's tokens.
        """
        while (done := self._limit.attempt(record, self._under_way)) is None:
            self._batches = [part for batch in self._batches for part in self._divide(batch)]
        return done.result

    def hidden_of(self, numbers: Sequence[int]) -> Tensor:
        """Return the hidden states of some sequences, one after the other, [T, d], on the model's device."""
        states: dict[int, Tensor] = {}
        for batch in self._batches:
            if not states.keys() >= set(numbers) and not set(numbers).isdisjoint(batch.numbers):
                states |= batch.by_number
        return torch.cat([states[number] for number in numbers]).to(self._device)

    def try_group(
        self, index: int, group: int, measure: Callable[[Tensor, list[int]], T], weights: MakeWeights
    ) -> list[T]:
        """Return what `measure` makes of layer `index`'s outputs, [T, d], for each call of a group.

        It is told which sequences they are of. `weights` makes those that the layer has in place of its own, by their
        names in it, for each call anew. All of the group begins again where memory ran out.
        """

        def work(batch: _Batch) -> T:
            return measure(self._forward(index, batch, weights()).flatten(0, 1), batch.numbers)

        while True:
            results: list[T] = []
            for batch in [each for each in self._batches if each.group == group]:
                done = self._limit.attempt(partial(work, batch), batch.lengths)
                if done is None:
                    self._batches = [part for each in self._batches for part in self._divide(each)]
                    break
                results.append(done.result)
            else:
                return results

    def compute_change(self, index: int) -> Tensor:
        """Return what layer `index` adds to one batch, [1, T, d], in float32."""
        batch = min(self._batches, key=lambda each: each.hidden.numel())
        return self._forward(index, batch).float() - batch.hidden.to(self._device).float()

    def advance(self, index: int) -> None:
        """Replace the inputs of layer `index` by its outputs."""
        num_done = 0
        while num_done < len(self._batches):
            batch = self._batches[num_done]
            outputs = self._limit.attempt(partial(self._outputs, index, batch), batch.lengths)
            if outputs is None:
                parts = [self._divide(each) for each in self._batches]
                num_done = sum(map(len, parts[:num_done]))
                self._batches = [part for each in parts for part in each]
            else:
                batch.hidden = outputs.result
                num_done += 1

    def _outputs(self, index: int, batch: _Batch) -> Tensor:
        return self._forward(index, batch).to(self._storage)

    def _forward(self, index: int, batch: _Batch, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        self._under_way[:] = batch.lengths
        positions, keywords = move_to((batch.positions[index], batch.keywords[index]), self._device, {})
        layer, inputs = self._layers[index], (batch.hidden.to(self._device), *positions)
        output = (
            layer(*inputs, **keywords) if weights is None else functional_call(layer, dict(weights), inputs, keywords)
        )
        return output[0] if isinstance(output, tuple) else output

    def _lengths(self, numbers: Sequence[int]) -> list[int]:
        return [len(self._sequences[number]) for number in numbers]

    def _split(self, numbers: Sequence[int]) -> list[list[int]]:
        """Split into calls. No padding, which would count as inputs: what is not packed goes at equal lengths."""
        batches = batch_rows(self._model, self._lengths(numbers), self._limit.tokens, allow_padding=False)
        return [[numbers[i] for i in batch] for batch in batches]

    def _divide(self, batch: _Batch) -> list[_Batch]:
        """Return the batch as several, with the same hidden states; as it is where the limit takes it."""
        if len(batch.numbers) == 1 or sum(batch.lengths) <= self._limit.tokens:
            return [batch]
        states = batch.by_number
        parts = [self._embed(batch.group, numbers) for numbers in self._split(batch.numbers)]
        for part in parts:
            part.hidden = torch.cat([states[number] for number in part.numbers]).reshape(part.hidden.shape)
        return parts

    def _embed(self, group: int, numbers: list[int]) -> _Batch:
        """Record what the model calls its decoder layers with; between embedding and final norm nothing is computed."""
        rows = [torch.from_numpy(self._sequences[number].astype(np.int64)) for number in numbers]
        reset_frequencies(self._model)
        with self._embedding(), _record_layer_calls(self._layers) as calls:
            self._model.base_model(use_cache=False, **inputs_of_rows(self._model, rows, mode_of(self._model)))
        positions, keywords = move_to(
            ([call.positions for call in calls], [call.keywords for call in calls]), self._storage, {}
        )
        hidden = calls[0].hidden.to(self._storage)
        return _Batch(group, numbers, self._lengths(numbers), hidden, positions, keywords)


def _group(lengths: Sequence[int], most_tokens: float) -> list[list[int]]:
    """Return the numbers of sequences that go together, in their order."""
    groups: list[list[int]] = []
    num_tokens = 0
    for number, length in enumerate(lengths):
        if not groups or num_tokens + length > most_tokens:
            groups.append([])
            num_tokens = 0
        groups[-1].append(number)
        num_tokens += length
    return groups


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
