"""Negative log-likelihood of given tokens, for perplexity. Shapes: T tokens, V vocabulary, d hidden width."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.losses.closed_form import softmax_and_logsumexp
from rayqd.losses.output_head import Head, write_logits
from rayqd.losses.rows import chunk_size, row_blocks, slices


@torch.no_grad()
def chunked_token_nll(
    hidden: Float[Tensor, "T d"],
    head: Head,
    target_ids: Int[Tensor, " T"],
    *,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """Return -log softmax(logits)[target] of each token in nats, float32; no gradient.

    A head [V, d] is a tensor, with logits `hidden @ head.T`, or an `OutputHead`.

    `hidden[t]` is the state that predicts `target_ids[t]`. The product runs in the dtype of `hidden` and `head`, the
    softmax in float32; `chunk_tokens` rows of logits are held at a time. Raises ModelError for shapes, dtypes or ids
    that do not fit the head.
    """
    _check(hidden, head, target_ids)
    vocab_size = len(head)
    chunk_tokens = chunk_size(chunk_tokens, vocab_size, head.element_size(), head.device)
    nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    targets = target_ids.long()[:, None]
    buffer = hidden.new_empty(min(chunk_tokens, len(hidden)), vocab_size)
    for rows in slices(len(hidden), chunk_tokens):
        logits = buffer[: rows.stop - rows.start]
        write_logits(hidden[rows], head, logits)
        for block in row_blocks(len(logits), vocab_size, logits.device):
            scores = logits[block].float()
            nll[rows][block] = softmax_and_logsumexp(scores)[1] - scores.gather(1, targets[rows][block])[:, 0]
    return nll


def _check(hidden: Tensor, head: Head, target_ids: Tensor) -> None:
    if (
        hidden.dim() != 2
        or len(head.shape) != 2
        or hidden.shape[1] != head.shape[1]
        or target_ids.shape != hidden.shape[:1]
    ):
        raise ModelError(
            f"hidden {list(hidden.shape)}, head {list(head.shape)} and target_ids {list(target_ids.shape)} must be "
            "[tokens, width], [vocabulary, width] and [tokens]"
        )
    if hidden.dtype != head.dtype:
        raise ModelError(f"hidden is {hidden.dtype} and head {head.dtype}; cast one to the other's dtype")
    if len(target_ids) and (int(target_ids.min()) < 0 or int(target_ids.max()) >= len(head)):
        raise ModelError(
            f"target_ids reach from {int(target_ids.min())} to {int(target_ids.max())}, but the head has {len(head)} "
            "ids; use the tokenizer that belongs to the model"
        )
