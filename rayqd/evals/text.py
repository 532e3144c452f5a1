"""Perplexity of a running text, by a window that slides over it, as papers on quantization report it.

    window 6, stride 2, tokens 0 to 9:        0 [1 2 3 4 5]            in brackets: scored; before them: context
                                                  2 3 4 5 [6 7]
                                                      4 5 6 7 [8 9]

Every token but the first is scored once, with at least `window` - `stride` tokens before it. `stride` = `window` gives
disjoint windows, as llama.cpp and GPTQ's code cut them; the first token of each then has nothing that predicts it, and
is not scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from rayqd.losses import chunked_token_nll
from rayqd.losses.output_head import Head
from rayqd.model.hidden_states import completion_states
from rayqd.model.sharding import is_sharded
from rayqd.model.token_limit import TokenLimit, run_batches
from rayqd.types import IntArray, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def windows(token_ids: IntArray, window: int, stride: int) -> list[Rollout]:
    """Cut a text of N tokens into windows: the prompt of each is context, its completion what is scored there."""
    return [
        Rollout(
            step=-1,
            index=index,
            on_policy=False,
            prompt_ids=token_ids[begin:scored],
            completion_ids=token_ids[scored:end],
            policy_version=None,
        )
        for index, (begin, scored, end) in enumerate(_places(len(token_ids), window, stride))
    ]


def _places(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each window begins, where its scored tokens begin, and where it ends."""
    done = 1
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens)
        scored = max(done, begin + 1)  # nothing in the window predicts its first token
        if scored < end:
            yield begin, scored, end
        if end == num_tokens:
            return
        done = end


@torch.no_grad()
def text_perplexity(model: PreTrainedModel, head: Head, rows: Sequence[Rollout], max_tokens: int) -> tuple[float, int]:
    """Return the perplexity of `model`, with its output head [V, d], over `windows`, and the number of scored tokens.

    `max_tokens` run at a time.
    """
    head = head.float()  # products rounded to 16 bits would move it in the fourth digit
    limit = TokenLimit(
        tokens=max_tokens,
        setting="learner.microbatch_tokens",
        advice="lower eval.window, or measure where more memory is free",
        can_be_lowered=not is_sharded(model),
    )

    def measure(indices: list[int]) -> tuple[float, int]:
        batch = [rows[i] for i in indices]
        hidden = completion_states(model, batch).float()
        targets = torch.cat([torch.from_numpy(row.completion_ids.astype("int64")) for row in batch])
        nll = chunked_token_nll(hidden, head, targets.to(hidden.device))
        return nll.double().sum().item(), len(targets)

    parts = [part for _, part in run_batches(model, rows, limit, measure)]
    number = sum(num_tokens for _, num_tokens in parts)
    return math.exp(sum(total for total, _ in parts) / number), number
