"""The forward mode of a model that is loaded: what was found for its configuration, remembered beside the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from torch import nn

from rayqd.model.forward.mode import ForwardMode
from rayqd.model.forward.probe import find_mode
from rayqd.model.forward.rotary import frequency_class

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MODES: WeakKeyDictionary[nn.Module, ForwardMode] = WeakKeyDictionary()


def mode_of(model: PreTrainedModel) -> ForwardMode:
    """Return how `model` is run; its attention is set to that mode's. Raises ModelError as `find_mode` does."""
    mode = _MODES.get(model)
    if mode is None:
        mode = find_mode(model.config)
        _set_attention(model, mode)
        _MODES[model] = mode
    return mode


def _set_attention(model: PreTrainedModel, mode: ForwardMode) -> None:
    current = cast(Any, model.config)._attn_implementation
    if current != mode.attention:
        model.set_attn_implementation(mode.attention)


def describe_forward(model: PreTrainedModel) -> str:
    """Name what a model's numbers depend on beside weights and dtype; empty where all rows go end to end."""
    mode = mode_of(model)
    if mode.is_packed and mode.head.is_plain and frequency_class(model) is None:
        return ""
    return f"{mode.batching} {mode.states} {mode.head}"


def attention_of(config: PreTrainedConfig) -> str:
    """Return the attention implementation to load a model of `config` with."""
    return find_mode(config).attention
