"""Hidden states that predict a completion: the one computation that student, teacher and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayqd.model.packed_attention import make_keywords
from rayqd.model.wire import from_wire
from rayqd.types import HiddenPayload, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def completion_states(model: PreTrainedModel, rollouts: Sequence[Rollout]) -> Tensor:
    """Compute the last hidden states, after the final norm, at the positions that predict each completion token.

    Returns [sum of C, d], the rollouts' completions one after the other. The rollouts go through the model end to end,
    without padding (see `rayqd.model.packed_attention`).
    """
    device = next(model.parameters()).device
    lengths = [r.num_tokens for r in rollouts]
    ids = np.concatenate([part for r in rollouts for part in (r.prompt_ids, r.completion_ids)]).astype(np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    predicts = np.concatenate([_predicts(r) for r in rollouts])
    output = model.base_model(
        input_ids=torch.from_numpy(ids)[None].to(device),
        position_ids=torch.from_numpy(positions)[None].to(device),
        use_cache=False,
        **make_keywords(lengths, model),
    )
    return output.last_hidden_state[0, torch.from_numpy(predicts).to(device)]


def batch_by_tokens(rollouts: Sequence[Rollout], max_tokens: int) -> list[list[int]]:
    """Split the indices of `rollouts`, in order, into batches of at most `max_tokens`; a longer rollout is alone."""
    return batch_lengths([rollout.num_tokens for rollout in rollouts], max_tokens)


def batch_lengths(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split the indices of sequences, in order, into batches of at most `max_tokens`; a longer one is alone."""
    batches: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if not batches or length > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(i)
        room -= length
    return batches


def teacher_states(scored: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    """Return the same states as the teacher sent them, [sum of C, d]; the payloads must be hidden states."""
    payloads = [row.payload for row in scored if isinstance(row.payload, HiddenPayload)]
    assert len(payloads) == len(scored)
    return torch.cat([from_wire(payload.hidden) for payload in payloads]).to(device)


def _predicts(rollout: Rollout) -> NDArray[np.bool_]:
    """Return [P + C], true where the next token is one of the completion."""
    position = np.arange(rollout.num_tokens)
    return (position >= len(rollout.prompt_ids) - 1) & (position < rollout.num_tokens - 1)
