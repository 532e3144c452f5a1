"""Attention over packed sequences, laid end to end: no padding anywhere, and no sequence attends to another.

transformers hands every keyword it does not know down to the attention function, so `make_keywords` reach it from the
model's call. All other layers work token by token and need not know where a sequence ends.
"""

from __future__ import annotations

from functools import lru_cache, partial
from inspect import signature
from itertools import accumulate
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rayqd.errors import ModelError
from rayqd.model.row_attention import attend_row, causal_mask

NAME = "rayqd_packed"  # as transformers' `attn_implementation`
# torch 2.12 and later want to hear that heads of a query share a key's; 2.11 just does it.
_HAS_GQA = "enable_gqa" in signature(varlen_attn).parameters
_varlen_attn = partial(varlen_attn, enable_gqa=True) if _HAS_GQA else varlen_attn  # pyright: ignore[reportCallIssue]

# Keywords that reach an attention function and change nothing for it: what the rest of the model is told.
_NEUTRAL = frozenset(
    (
        *("scaling", "position_ids", "position_embeddings", "layer_idx", "cache_position", "logits_to_keep"),
        *("use_cache", "past_key_values", "past_key_value", "return_dict"),
        *("output_attentions", "output_hidden_states", "output_router_logits"),
    )
)
_OFF: dict[str, object] = {"dropout": 0.0, "is_causal": True}  # values that mean what is computed here anyway


class PackedKeywords(TypedDict, total=False):
    """What a model's call needs beside the token ids and positions of packed sequences."""

    lengths: list[int]  # of the sequences, in tokens
    cu_seqlens: Tensor  # [sequences + 1] int32: where each starts, and where the last one ends
    max_seqlen: int


def make_keywords(lengths: list[int], model: nn.Module) -> PackedKeywords:
    """Return the keywords for a call of `model` on sequences of `lengths`: for FlashAttention where it is used."""
    first = next(model.parameters())
    if not _uses_flash(first):
        return {"lengths": lengths}
    return {"cu_seqlens": _cumulate(tuple(lengths), first.device), "max_seqlen": max(lengths)}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int] | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each of the sequences that `make_keywords` described, within a window where there is one.

    Windows are those of FlashAttention and of a mask; scores that are capped (`softcap`) and sinks (`s_aux`, a logit
    [heads]) are computed row by row, as plain products.

    Shapes: query [1, heads, sum of lengths, width], key and value the same with their own heads; returns
    [1, sum of lengths, heads, width] and no attention weights. Raises ModelError for a batch, a mask, a keyword that
    would change the attention otherwise, or a call without any of the lengths.
    """
    num_tokens = query.shape[2]
    _check_settings(module, settings)
    if lengths is None and cu_seqlens is None and num_tokens > 1:
        raise ModelError("packed attention was not told where rows begin: the model's layers drop keyword arguments")
    if attention_mask is not None or len(query) > 1:
        raise ModelError("packed attention takes one row without a mask")
    max_seqlen = max_seqlen or max(lengths or [num_tokens])
    window = None if sliding_window is None or max_seqlen <= sliding_window else sliding_window
    is_plain = softcap is None and s_aux is None
    if is_plain and _uses_flash(query):
        if cu_seqlens is None:
            cu_seqlens = _cumulate(tuple(lengths or [num_tokens]), query.device)
        return _flash_attention(query, key, value, cu_seqlens, max_seqlen, settings.get("scaling"), window), None
    if lengths is None:
        lengths = [num_tokens] if cu_seqlens is None else cu_seqlens.diff().tolist()
    rows = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    if is_plain:
        return torch.cat([_sdpa(module, *row, window, settings) for row in rows], dim=1), None
    scale: float = settings.get("scaling") or query.shape[-1] ** -0.5
    outputs = [attend_row(*row, scale=scale, window=sliding_window, softcap=softcap, sinks=s_aux) for row in rows]
    return torch.cat(outputs, dim=1), None


def _sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, window: int | None, settings: dict[str, Any]
) -> Tensor:
    """Attend within one row; only what is longer than the window needs a mask."""
    length = query.shape[2]
    mask = causal_mask(length, window, query.device)[None, None] if window is not None and length > window else None
    return sdpa_attention_forward(module, query, key, value, mask, **{**settings, "is_causal": True})[0]


def _check_settings(module: nn.Module, settings: dict[str, Any]) -> None:
    """Raise ModelError for a keyword that would change the attention and is not computed here."""
    for name, value in settings.items():
        if name in _NEUTRAL or value is None or (name in _OFF and value == _OFF[name]):
            continue
        raise ModelError(f"packed attention does not know {name}={_brief(value)}")
    if getattr(module, "is_causal", True) is False:
        raise ModelError("packed attention is causal, and the model's is not")


def _brief(value: object) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:40]


def _uses_flash(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float32


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Run one FlashAttention kernel over all sequences. Several heads of a query may share a key's."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    missing = q.shape[-1] - v.shape[-1]  # the kernel wants values as wide as keys
    if missing > 0:
        v = nn.functional.pad(v, (0, missing))
    reach = -1 if window is None else window - 1  # tokens before its own that a token sees
    output = _varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=(reach, 0))
    output = cast(Tensor, output)[None]
    return output[..., :-missing] if missing > 0 else output


@lru_cache(maxsize=8)
def _cumulate(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(NAME, packed_attention)
