"""Causal attention of one row, as plain products: with windows, capped scores and sinks, which few kernels have.

Shapes: H heads of queries, K of keys, L tokens of the row. With q_i and k_j of one head,

    s_ij = c · tanh(scale · q_i k_j / c)   for i - window < j <= i, else -inf;   scale · q_i k_j without a cap c

and the output at i is sum_j v_j exp(s_ij) / (exp(sink) + sum_j exp(s_ij)), without exp(sink) where there is no sink: a
logit of each head that takes its share of the probability and adds nothing (gpt-oss).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attend_row(
    query: Float[Tensor, "1 H L d"],
    key: Float[Tensor, "1 K L d"],
    value: Float[Tensor, "1 K L w"],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
) -> Float[Tensor, "1 L H w"]:
    """Return the output at each token; products in the dtype of the queries, the softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.matmul(query, key.mT) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.float().masked_fill(~causal_mask(scores.shape[-1], window, scores.device), -torch.inf)
    if sinks is not None:
        column = sinks.float()[None, :, None, None].expand(-1, -1, scores.shape[2], 1)
        probabilities = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    else:
        probabilities = scores.softmax(-1)
    return torch.matmul(probabilities.to(value.dtype), value).transpose(1, 2)


@lru_cache(maxsize=16)
def causal_mask(length: int, window: int | None, device: torch.device) -> Bool[Tensor, "L L"]:
    """Return where token i attends to j: the last `window` tokens up to itself, or all of them."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    return mask if window is None else mask.triu_(1 - window)
