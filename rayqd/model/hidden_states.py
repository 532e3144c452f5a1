"""Hidden states that predict a completion: the one computation that student, teacher and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayqd.model.forward.batches import batch_rows
from rayqd.model.forward.call import states_of_rows
from rayqd.model.forward.of_model import mode_of
from rayqd.model.wire import from_wire
from rayqd.types import HiddenPayload, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def completion_states(model: PreTrainedModel, rollouts: Sequence[Rollout]) -> Tensor:
    """Compute the last hidden states, after the final norm, at the positions that predict each completion token.

    Returns [sum of C, d], the rollouts' completions one after the other: what `rayqd.losses.OutputHead` multiplies.
    Tokens that are not trained on have none.
    The rollouts go through the model end to end, without padding, where it takes them so (see `rayqd.model.forward`).
    """
    rows = [torch.from_numpy(np.concatenate([r.prompt_ids, r.completion_ids]).astype(np.int64)) for r in rollouts]
    lengths = [len(row) for row in rows]
    parts: dict[int, Tensor] = {}
    for indices in batch_rows(model, lengths, len(rows) * max(lengths)):
        members = [rollouts[i] for i in indices]
        states = states_of_rows(model, [rows[i] for i in indices], mode_of(model))
        predicts = torch.from_numpy(np.concatenate([_predicts(r) for r in members])).to(states.device)
        if len(members) == len(rollouts) and indices == sorted(indices):
            return states[predicts]
        parts |= zip(indices, states[predicts].split([r.num_loss_tokens for r in members]), strict=True)
    return torch.cat([parts[i] for i in range(len(rows))])


def batch_by_tokens(model: PreTrainedModel, rollouts: Sequence[Rollout], max_tokens: int) -> list[list[int]]:
    """Split the indices of `rollouts` into batches of at most `max_tokens`, each of which is one call of `model`."""
    return batch_rows(model, [rollout.num_tokens for rollout in rollouts], max_tokens)


def teacher_states(scored: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    """Return the same states as the teacher sent them, [sum of C, d]; the payloads must be hidden states."""
    payloads = [row.payload for row in scored if isinstance(row.payload, HiddenPayload)]
    assert len(payloads) == len(scored)
    return torch.cat([from_wire(payload.hidden) for payload in payloads]).to(device)


def _predicts(rollout: Rollout) -> NDArray[np.bool_]:
    """Return [P + C], true where the next token is one of the completion that is trained on."""
    predicts = np.zeros(rollout.num_tokens, dtype=np.bool_)
    predicts[len(rollout.prompt_ids) - 1 : -1] = True if rollout.trained is None else rollout.trained
    return predicts
