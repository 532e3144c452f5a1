"""One call of a model on the rows of a batch. Shapes: a row has L tokens, a batch N of them in all, d is the width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rayqd.model.forward.mode import ForwardMode, StateSource
from rayqd.model.forward.rotary import reset_frequencies
from rayqd.model.packed_attention import make_keywords

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def states_of_rows(model: PreTrainedModel, rows: Sequence[Tensor], mode: ForwardMode) -> Tensor:
    """Return the states that the output head multiplies, [N, d]: row after row, in one call of the model.

    `rows` are token ids, [L] int64 on the CPU, that `batches.batch_rows` put together.
    """
    reset_frequencies(model)
    states = _states(model, mode, **inputs_of_rows(model, rows, mode))
    if mode.is_packed or len(rows) == 1:
        return states[0]
    return torch.cat([states[i, : len(row)] for i, row in enumerate(rows)])


def inputs_of_rows(model: PreTrainedModel, rows: Sequence[Tensor], mode: ForwardMode) -> dict[str, Any]:
    """Return the keywords with which `model` is called on `rows`."""
    device = next(model.parameters()).device
    if not mode.is_packed:
        # What follows a token changes nothing for it, so that neither mask nor positions are needed.
        return {"input_ids": pad_sequence(list(rows), batch_first=True, padding_value=int(rows[0][-1])).to(device)}
    lengths = [len(row) for row in rows]
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": torch.cat(list(rows))[None].to(device),
        "position_ids": positions[None].to(device),
        **make_keywords(lengths, model),
    }


def _states(model: PreTrainedModel, mode: ForwardMode, **inputs: Any) -> Tensor:
    """Return [rows, L, d] of one call."""
    if mode.states is StateSource.BASE_MODEL:
        return model.base_model(use_cache=False, **inputs).last_hidden_state
    with _head_input(model) as captured:
        model(use_cache=False, **inputs)
    return captured[0]


@contextmanager
def _head_input(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Keep what the model hands to its output head, which then computes nothing."""
    captured: list[Tensor] = []

    def forward(states: Tensor) -> Tensor:
        captured.append(states)
        return states[..., :1]

    head = vars(cast(Any, model).get_output_embeddings())
    head["forward"] = forward
    try:
        yield captured
    finally:
        del head["forward"]
