"""How far the student is from its teacher on held-out completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.events import Fidelity
from rayqd.losses import chunked_token_nll
from rayqd.losses.closed_form import loss_and_slope, scale_logits, softmax_and_logsumexp
from rayqd.losses.output_head import Head, logits_of
from rayqd.losses.rows import chunk_size, row_blocks, slices
from rayqd.model.hidden_states import batch_by_tokens, completion_states, teacher_states
from rayqd.teacher.forward import Teacher
from rayqd.types import Example, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BYTES_PER_ID = 8  # of a token's logits that are held: float32, of both sides


def score(examples: Sequence[Example], teacher: Teacher) -> list[ScoredRollout]:
    """Return the held-out rows with the teacher's hidden states."""
    rollouts = [Rollout.from_data(example, step=-1, index=index) for index, example in enumerate(examples)]
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, teacher.hidden(rollouts), strict=True)]


@torch.no_grad()
def student_fidelity(
    model: PreTrainedModel, head: Head, teacher_head: Head, heldout: Sequence[ScoredRollout], max_tokens: int
) -> Fidelity:
    """Measure a student, with its output head [V, d], against the teacher's hidden states that `heldout` carries."""
    # Products rounded to 16 bits would add 5e-4 nats to every KL.
    head, teacher_head = head.float(), teacher_head.float()
    sums = torch.zeros(4, dtype=torch.float64)
    for indices in batch_by_tokens(model, [s.rollout for s in heldout], max_tokens):
        batch = [heldout[i] for i in indices]
        hidden = completion_states(model, [s.rollout for s in batch]).float()
        teacher = teacher_states(batch, hidden.device).float()
        sums += _sums(hidden, head, teacher, teacher_head, _targets(batch, hidden.device))
    return _mean(sums, heldout)


@torch.no_grad()
def teacher_fidelity(teacher_head: Head, heldout: Sequence[ScoredRollout]) -> Fidelity:
    """Measure the teacher itself: no distance, and its own perplexity."""
    teacher_head = teacher_head.float()
    sums = torch.zeros(4, dtype=torch.float64)
    for scored in heldout:
        hidden = teacher_states([scored], teacher_head.device).float()
        sums[3] += chunked_token_nll(hidden, teacher_head, _targets([scored], hidden.device)).double().sum().item()
    sums[2] = sum(s.rollout.num_loss_tokens for s in heldout)
    return _mean(sums, heldout)


def _sums(hidden: Tensor, head: Head, teacher: Tensor, teacher_head: Head, targets: Tensor) -> Tensor:
    """Sum over the tokens: KL, total variation, agreement of the likeliest ids, negative log-likelihood; [4]."""
    common = min(len(head), len(teacher_head))  # heads of one tokenizer may be padded to different sizes
    sums = torch.zeros(4, dtype=torch.float64)
    for rows in slices(len(hidden), chunk_size(None, len(head), _BYTES_PER_ID, head.device)):
        logits, teacher_logits = logits_of(hidden[rows], head), logits_of(teacher[rows], teacher_head[:common])
        for block in row_blocks(len(logits), len(head), head.device):
            sums += _block_sums(logits[block], teacher_logits[block], targets[rows][block])
    return sums


def _block_sums(logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over rows that fit a core's cache, whose softmaxes serve all four metrics; [4]."""
    student, teacher = scale_logits(logits, 1.0), scale_logits(teacher_logits, 1.0)
    at_target = student.gather(1, targets[:, None])[:, 0]
    nll = None
    if student.shape != teacher.shape:
        nll = softmax_and_logsumexp(student)[1] - at_target
        student = scale_logits(logits[:, : teacher.shape[1]], 1.0)
    agrees = student.gather(1, teacher.argmax(-1, keepdim=True))[:, 0] == 0.0  # each row's largest is 0
    p, q = torch.empty_like(student), torch.empty_like(teacher)
    kl, _ = loss_and_slope(student, teacher, 0.0, with_slope=False, scratch=(p, q))
    if nll is None:
        nll = -p.amax(-1).log() - at_target  # the probability of a logit of 0 is 1 / sum exp
    distance = q.sub_(p).abs_().sum(-1).mul_(0.5).clamp_(max=1.0)
    return torch.stack([metric.double().sum().cpu() for metric in (kl, distance, agrees, nll)])


def _mean(sums: Tensor, heldout: Sequence[ScoredRollout]) -> Fidelity:
    num_tokens = sum(s.rollout.num_loss_tokens for s in heldout)
    kl, distance, agrees, nll = (sums / num_tokens).tolist()
    return Fidelity(
        kl_to_teacher=kl,
        total_variation=distance,
        top1_agreement=agrees,
        perplexity=math.exp(nll),
        num_tokens=num_tokens,
    )


def _targets(batch: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    return torch.cat([torch.from_numpy(s.rollout.target_ids.astype("int64")) for s in batch]).to(device)
