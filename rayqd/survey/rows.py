"""The rows of a trial, and what two computations make of them.

Shapes: L tokens of a row, C of its completion, V ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rayqd.losses.output_head import logits_of
from rayqd.model.forward.head_form import distance
from rayqd.model.hidden_states import completion_states
from rayqd.model.load import output_head
from rayqd.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompts and completions: below and above windows and what a rotary embedding was trained for, out of order.
_ROWS = ((3, 9), (20, 30), (5, 6))
_SEED = 3


def make_rollouts(vocab_size: int) -> list[Rollout]:
    """Return random rows of few ids."""
    random = np.random.default_rng(_SEED)
    ids = random.integers(1, min(vocab_size, 120), sum(map(sum, _ROWS)), dtype=np.int32)
    rollouts: list[Rollout] = []
    for index, (prompt, completion) in enumerate(_ROWS):
        own, ids = ids[: prompt + completion], ids[prompt + completion :]
        rollouts.append(
            Rollout(
                step=0,
                index=index,
                on_policy=False,
                prompt_ids=own[:prompt],
                completion_ids=own[prompt:],
                policy_version=None,
            )
        )
    return rollouts


def token_ids(rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Return the ids [L] of whole rows."""
    return [torch.from_numpy(np.concatenate([r.prompt_ids, r.completion_ids]).astype(np.int64)) for r in rollouts]


@torch.no_grad()
def logits_together(model: PreTrainedModel, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Return the logits [C, V] that predict each completion, as training computes them."""
    logits = logits_of(completion_states(model, rollouts), output_head(model))
    return list(logits.double().split([r.num_loss_tokens for r in rollouts]))


def predicting(logits: Sequence[Tensor], rollouts: Sequence[Rollout]) -> list[Tensor]:
    """Return of the logits [L, V] of whole rows those that predict the completions."""
    return [each[len(r.prompt_ids) - 1 : -1] for each, r in zip(logits, rollouts, strict=True)]


def largest_difference(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, str]:
    """Return the largest difference of any row, and which row."""
    differences = [distance(a, b) for a, b in zip(logits, expected, strict=True)]
    worst = max(range(len(differences)), key=lambda i: differences[i] if differences[i] == differences[i] else math.inf)
    return differences[worst], f"a row of {sum(_ROWS[worst])} tokens"
