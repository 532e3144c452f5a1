"""How far the student is from its teacher on held-out completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.losses import chunked_token_nll
from rayqd.losses.closed_form import loss_and_slope, scale_logits, softmax_and_logsumexp
from rayqd.losses.output_head import Head, as_heads, logits_of
from rayqd.losses.rows import chunk_size, row_blocks, slices
from rayqd.metrics.fidelity import ByRow, Fidelity
from rayqd.model.by_teacher import compute_by_teacher
from rayqd.model.hidden_states import completion_states, teacher_states
from rayqd.model.sharding import is_sharded
from rayqd.model.token_limit import TokenLimit, run_batches
from rayqd.teacher.forward import Teacher
from rayqd.types import Example, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRICS = ("kl", "total_variation", "agrees", "nll")  # at a token: nats, 0 to 1, 0 or 1, nats
Heads = Head | Sequence[Head]  # of the teacher, or of several by number
_BYTES_PER_ID = 8  # of a token's logits that are held: float32, of both sides
_DECIMALS = 7  # of a row's sums that are kept


def score(examples: Sequence[Example], teacher: Teacher) -> list[ScoredRollout]:
    """Return the held-out rows with the teacher's hidden states."""
    rollouts = [Rollout.from_data(example, step=-1, index=index) for index, example in enumerate(examples)]
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, teacher.hidden(rollouts), strict=True)]


@torch.no_grad()
def student_fidelity(
    model: PreTrainedModel, head: Head, teacher_heads: Heads, heldout: Sequence[ScoredRollout], max_tokens: int
) -> Fidelity:
    """Measure a student, with its output head [V, d], against the teacher's hidden states that `heldout` carries.

    Of several teachers each row is held against its own.
    """
    return mean_fidelity(compare_tokens(model, head, teacher_heads, heldout, max_tokens))


@torch.no_grad()
def compare_tokens(
    model: PreTrainedModel, head: Head, teacher_heads: Heads, heldout: Sequence[ScoredRollout], max_tokens: int
) -> list[Tensor]:
    """Return of each row, at each of its C trained tokens, what METRICS names; float64 on the CPU, [C, 4]."""
    # Products rounded to 16 bits would add 5e-4 nats to every KL.
    head, heads = head.float(), [each.float() for each in as_heads(teacher_heads)]
    limit = TokenLimit(
        tokens=max_tokens,
        setting="learner.microbatch_tokens",
        advice="lower data.max_length, or measure where more memory is free",
        can_be_lowered=not is_sharded(model),
    )

    def compare(number: int, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        teacher = teacher_states(batch, hidden.device).float()
        return _compare(hidden, head, teacher, heads[number], _targets(batch, hidden.device))

    def measure(indices: list[int]) -> tuple[Tensor, ...]:
        batch = [heldout[i] for i in indices]
        hidden = completion_states(model, [s.rollout for s in batch]).float()
        metrics = compute_by_teacher(hidden, batch, compare)
        return torch.split(metrics, [s.rollout.num_loss_tokens for s in batch])

    rows: dict[int, Tensor] = {}
    for indices, part in run_batches(model, [s.rollout for s in heldout], limit, measure):
        rows |= zip(indices, part, strict=True)
    return [rows[i] for i in range(len(heldout))]


@torch.no_grad()
def teacher_fidelity(teacher_heads: Heads, heldout: Sequence[ScoredRollout]) -> Fidelity:
    """Measure the teacher itself, of several each on its own rows: no distance, and its own perplexity."""
    heads = [head.float() for head in as_heads(teacher_heads)]
    rows: list[Tensor] = []
    for scored in heldout:
        teacher_head = heads[scored.rollout.teacher]
        hidden = teacher_states([scored], teacher_head.device).float()
        nll = chunked_token_nll(hidden, teacher_head, _targets([scored], hidden.device)).double().cpu()
        rows.append(torch.stack([torch.zeros_like(nll), torch.zeros_like(nll), torch.ones_like(nll), nll], dim=1))
    return mean_fidelity(rows)


def mean_fidelity(rows: Sequence[Tensor]) -> Fidelity:
    """Take the means of what `compare_tokens` returns of each row."""
    sums = torch.stack([row.sum(0) for row in rows])
    num_tokens = sum(map(len, rows))
    kl, distance, agrees, nll = (sums.sum(0) / num_tokens).tolist()
    return Fidelity(
        kl_to_teacher=kl,
        total_variation=distance,
        top1_agreement=agrees,
        perplexity=math.exp(nll),
        num_tokens=num_tokens,
        by_row=ByRow(
            num_tokens=tuple(map(len, rows)),
            kl=_rounded(sums[:, 0]),
            agrees=tuple(int(number) for number in sums[:, 2].tolist()),
            nll=_rounded(sums[:, 3]),
        ),
    )


def _rounded(sums: Tensor) -> tuple[float, ...]:
    return tuple(round(value, _DECIMALS) for value in sums.tolist())


def _compare(hidden: Tensor, head: Head, teacher: Tensor, teacher_head: Head, targets: Tensor) -> Tensor:
    common = min(len(head), len(teacher_head))  # heads of one tokenizer may be padded to different sizes
    parts: list[Tensor] = []
    for rows in slices(len(hidden), chunk_size(None, len(head), _BYTES_PER_ID, head.device)):
        logits, teacher_logits = logits_of(hidden[rows], head), logits_of(teacher[rows], teacher_head[:common])
        for block in row_blocks(len(logits), len(head), head.device):
            parts.append(_compare_block(logits[block], teacher_logits[block], targets[rows][block]))
    return torch.cat(parts).cpu()


def _compare_block(logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Compare at rows that fit a core's cache, whose softmaxes serve all four metrics; [rows, 4]."""
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
    return torch.stack([metric.double() for metric in (kl, distance, agrees, nll)], dim=1)


def _targets(batch: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    return torch.cat([torch.from_numpy(s.rollout.target_ids.astype("int64")) for s in batch]).to(device)
