"""Attention over sequences laid end to end: no padding anywhere, and no sequence sees another.

transformers hands every keyword it does not know down to the attention function, so `lengths` reaches it from the
model's call. All other layers work token by token and need not know where a sequence ends.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rayqd.errors import ModelError

NAME = "rayqd_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int] | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the sequences of `lengths`; without them, within the whole.

    Shapes: query [1, heads, sum of lengths, width], key and value the same with their own heads; returns
    [1, sum of lengths, heads, width] and no attention weights.
    """
    lengths = lengths or [query.shape[2]]
    if attention_mask is not None or len(query) > 1:
        raise ModelError("packed attention takes one row without a mask")
    if sliding_window is not None and max(lengths) > sliding_window:
        raise ModelError(
            f"a sequence of {max(lengths)} tokens is longer than the model's attention window of {sliding_window}: "
            f"set data.max_length + rollout.max_new_tokens to {sliding_window} or less"
        )
    if query.is_cuda and query.dtype != torch.float32:
        return _variable_length(query, key, value, lengths, settings.get("scaling")), None
    settings["is_causal"] = True
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **settings)[0] for q, k, v in parts], dim=1), None


def _variable_length(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float | None) -> Tensor:
    """One FlashAttention kernel over all sequences."""
    num_shared = query.shape[1] // key.shape[1]
    if num_shared > 1:
        key, value = key.repeat_interleave(num_shared, 1), value.repeat_interleave(num_shared, 1)
    bounds, longest = _bounds(tuple(lengths), query.device), max(lengths)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0))[None]  # pyright: ignore


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each sequence starts, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(NAME, packed_attention)
