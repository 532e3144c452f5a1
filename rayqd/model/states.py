"""The hidden states that predict a completion: the one computation that student, teacher and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rayqd.model.wire import from_wire
from rayqd.types import Rollout, ScoredRollout


def completion_states(model: nn.Module, rollouts: Sequence[Rollout]) -> Tensor:
    """Last hidden states after the final norm at the positions that predict each completion token.

    Returns [sum of C, d], the rollouts' completions one after the other. Rows are padded on the right: attention is
    causal and positions count from the left, so no real token sees the padding and no mask is needed.
    """
    where = next(model.parameters()).device
    width = max(r.num_tokens for r in rollouts)
    input_ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    predicts = torch.zeros(len(rollouts), width, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        prompt, total = len(rollout.prompt_ids), rollout.num_tokens
        input_ids[row, :prompt] = torch.from_numpy(rollout.prompt_ids.astype("int64"))
        input_ids[row, prompt:total] = torch.from_numpy(rollout.completion_ids.astype("int64"))
        predicts[row, prompt - 1 : total - 1] = True
    output = model.base_model(input_ids=input_ids.to(where), use_cache=False)  # pyright: ignore
    return output.last_hidden_state[predicts.to(where)]


def by_tokens(rollouts: Sequence[Rollout], max_tokens: int) -> list[list[int]]:
    """Indices of `rollouts` in batches of at most `max_tokens`, padding included; longest first, so that batches are even.

    A rollout longer than `max_tokens` gets a batch of its own.
    """
    order = sorted(range(len(rollouts)), key=lambda i: -rollouts[i].num_tokens)
    batches: list[list[int]] = []
    for i in order:
        if batches and rollouts[batches[-1][0]].num_tokens * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def teacher_states(scored: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    """The same states as the teacher sent them, [sum of C, d]."""
    return torch.cat([from_wire(s.scores.hidden) for s in scored]).to(device)
