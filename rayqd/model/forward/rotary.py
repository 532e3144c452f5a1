"""Rotary embeddings whose frequencies depend on the longest row of a call: LongRoPE and dynamic scaling.

transformers chooses them by the largest position that it is called with, so rows share a call only if each of them
alone would get the same: rows on one side of the length that LongRoPE was made for, rows of one length beyond that of
dynamic scaling. What dynamic scaling remembers of longer rows is forgotten before each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Frequencies of one rotary embedding for one kind of layer, that depend on a call's longest row."""

    module: Any
    prefix: str  # of its buffers' names: "full_attention_", or empty where all layers have the same
    is_dynamic: bool  # else LongRoPE
    limit: int  # tokens that the embedding was trained for

    def classify(self, length: int) -> int:
        return max(length, self.limit) if self.is_dynamic else int(length > self.limit)

    def reset(self) -> None:
        original = getattr(self.module, f"{self.prefix}original_inv_freq")
        current = getattr(self.module, f"{self.prefix}inv_freq")
        if isinstance(original, Tensor) and isinstance(current, Tensor):
            setattr(self.module, f"{self.prefix}inv_freq", original.to(current.device))
        setattr(self.module, f"{self.prefix}max_seq_len_cached", self.limit)


_FOUND: WeakKeyDictionary[nn.Module, tuple[_Scaled, ...]] = WeakKeyDictionary()


def frequency_class(model: nn.Module) -> Callable[[int], tuple[int, ...]] | None:
    """Return what maps a row's length to its class: rows of one class may share a call; None if all rows may."""
    found = _scaled(model)
    return (lambda length: tuple(scaled.classify(length) for scaled in found)) if found else None


def reset_frequencies(model: nn.Module) -> None:
    """Let each rotary embedding with dynamic scaling forget the rows that it has seen."""
    for scaled in _scaled(model):
        if scaled.is_dynamic:
            scaled.reset()


def _scaled(model: nn.Module) -> tuple[_Scaled, ...]:
    if model not in _FOUND:
        _FOUND[model] = tuple(scaled for module in model.modules() for scaled in _scaled_of(module))
    return _FOUND[model]


def _scaled_of(module: nn.Module) -> Iterator[_Scaled]:
    rope_type: Any = getattr(module, "rope_type", None)
    by_kind = {"": rope_type} if isinstance(rope_type, str) else rope_type
    if not isinstance(by_kind, Mapping):
        return
    for kind, name in cast("Mapping[str, str]", by_kind).items():
        prefix = f"{kind}_" if kind else ""
        if name == "longrope":
            parameters = cast(Any, module).config.rope_parameters
            limit = (parameters[kind] if kind else parameters)["original_max_position_embeddings"]
            yield _Scaled(module, prefix, False, int(limit))
        elif "dynamic" in name:
            yield _Scaled(module, prefix, True, int(cast(Any, module).original_max_seq_len))
