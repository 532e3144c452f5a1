"""Attention over sequences laid end to end: no padding anywhere, and no sequence sees another.

transformers hands every keyword it does not know down to the attention function, so `keywords` reach it from the
model's call. All other layers work token by token and need not know where a sequence ends.
"""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rayqd.errors import ModelError

NAME = "rayqd_packed"
# torch 2.12 and later want to hear that heads of a query share a key's; 2.11 just does it.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


def keywords(lengths: list[int], model: nn.Module) -> dict[str, Any]:
    """What a call of `model` needs beside sequences of `lengths` laid end to end."""
    first = next(model.parameters())
    if not _has_flash(first):
        return {"lengths": lengths}
    return {"bounds": _bounds(tuple(lengths), first.device), "longest": max(lengths)}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int] | None = None,
    bounds: Tensor | None = None,
    longest: int | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the sequences that `keywords` described; without that, within the whole.

    Shapes: query [1, heads, sum of lengths, width], key and value the same with their own heads; returns
    [1, sum of lengths, heads, width] and no attention weights.
    """
    num_tokens = query.shape[2]
    if attention_mask is not None or len(query) > 1:
        raise ModelError("packed attention takes one row without a mask")
    longest = longest or max(lengths or [num_tokens])
    if sliding_window is not None and longest > sliding_window:
        raise ModelError(
            f"a sequence of {longest} tokens is longer than the model's attention window of {sliding_window}: "
            f"set data.max_length + rollout.max_new_tokens to {sliding_window} or less"
        )
    if _has_flash(query):
        if bounds is None:
            bounds = _bounds(tuple(lengths or [num_tokens]), query.device)
        return _variable_length(query, key, value, bounds, longest, settings.get("scaling")), None
    lengths = lengths or [num_tokens]
    settings["is_causal"] = True
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **settings)[0] for q, k, v in parts], dim=1), None


def _has_flash(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float32


def _variable_length(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None
) -> Tensor:
    """One FlashAttention kernel over all sequences. Several heads of a query may share a key's."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), **_GROUPED)[None]  # pyright: ignore


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence starts, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(NAME, packed_attention)
