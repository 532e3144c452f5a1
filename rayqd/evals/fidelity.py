"""How far the student is from its teacher on held-out completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.losses import chunked_generalized_jsd, chunked_token_nll
from rayqd.model.scoring import HiddenStateTeacher
from rayqd.model.states import by_tokens, completion_states, teacher_states
from rayqd.types import Example, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Means over the completion tokens of the held-out rows."""

    kl_to_teacher: float  # KL(teacher‖student), nats a token
    perplexity: float  # of the reference completions
    num_tokens: int


def score(examples: Sequence[Example], teacher: HiddenStateTeacher) -> list[ScoredRollout]:
    """Held-out rows with what the teacher makes of them."""
    rollouts = [Rollout.from_data(example, step=-1, index=index) for index, example in enumerate(examples)]
    return [ScoredRollout(rollout=r, scores=s) for r, s in zip(rollouts, teacher(rollouts), strict=True)]


@torch.no_grad()
def student_fidelity(
    model: PreTrainedModel, head: Tensor, teacher_head: Tensor, heldout: Sequence[ScoredRollout], max_tokens: int
) -> Fidelity:
    """Of a student [V, d] head included, against the teacher's hidden states that `heldout` carries."""
    # Products rounded to 16 bits would add 5e-4 nats to every KL.
    head, teacher_head = head.float(), teacher_head.float()
    kl = nll = 0.0
    for indices in by_tokens([s.rollout for s in heldout], max_tokens):
        batch = [heldout[i] for i in indices]
        hidden = completion_states(model, [s.rollout for s in batch]).float()
        teacher = teacher_states(batch, hidden.device).float()
        kl += chunked_generalized_jsd(hidden, head, teacher, teacher_head, beta=0.0).double().sum().item()
        nll += chunked_token_nll(hidden, head, _targets(batch, hidden.device)).double().sum().item()
    return _mean(kl, nll, heldout)


@torch.no_grad()
def teacher_fidelity(teacher_head: Tensor, heldout: Sequence[ScoredRollout]) -> Fidelity:
    """Of the teacher itself: no distance, and its own perplexity."""
    teacher_head = teacher_head.float()
    nll = 0.0
    for scored in heldout:
        hidden = teacher_states([scored], teacher_head.device).float()
        nll += chunked_token_nll(hidden, teacher_head, _targets([scored], hidden.device)).double().sum().item()
    return _mean(0.0, nll, heldout)


def _mean(kl: float, nll: float, heldout: Sequence[ScoredRollout]) -> Fidelity:
    tokens = sum(s.rollout.num_loss_tokens for s in heldout)
    return Fidelity(kl_to_teacher=kl / tokens, perplexity=math.exp(nll / tokens), num_tokens=tokens)


def _targets(batch: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    return torch.cat([torch.from_numpy(s.rollout.completion_ids.astype("int64")) for s in batch]).to(device)
