"""The generalized Jensen-Shannon divergence from a teacher's top-k log-probabilities.

Shapes: T tokens, V vocabulary, k ids given for each token. The ids that are not given form one bucket, the tail: both
sides become distributions over k + 1 outcomes. By the data-processing inequality their divergence is at most that over
the vocabulary; it is equal if student and teacher agree on how the tail is divided among its ids, as they must at
k = V and k = V - 1.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayqd.errors import ConfigError, ModelError
from rayqd.losses.closed_form import MASKED_LOGIT
from rayqd.losses.divergence import check_parameters, generalized_jsd
from rayqd.losses.rows import row_blocks

_MAX_TOTAL = 1.05  # of probabilities whose logarithms were rounded to bfloat16
_EPS = torch.finfo(torch.float32).eps


def topk_generalized_jsd(
    student_logits: Float[Tensor, "T V"],
    ids: Int[Tensor, "T k"],
    teacher_logprobs: Float[Tensor, "T k"],
    *,
    beta: float,
    temperature: float = 1.0,
) -> Float[Tensor, " T"]:
    """Return the divergence of student and teacher over `ids` and one tail bucket, token by token: nats, float32.

    Direction and beta as in `generalized_jsd`, of which it is a lower bound that is reached at k = V and k = V - 1.
    `teacher_logprobs[t, i]` is the teacher's log-probability of `ids[t, i]` over its whole vocabulary (not renormalized
    over the k ids); the ids may be anyone's choice, in any order, but distinct. Differentiable once, with respect to
    `student_logits`; within the tail the gradient only moves all of its ids together, in proportion to p.

    The student's tail is summed from its logits, the teacher's is what its log-probabilities leave of 1. Where that is
    no more than their rounding (2.4e-7 and more in float32, 4.4e-16 in float64), it counts as what, among the tails
    that the rounding leaves open, is nearest to the student's: neither side's tail then costs what may not be there.

    -inf, as a logit or a log-probability, means a probability of 0, with the effects that it has in `generalized_jsd`.

    Raises ConfigError for a beta outside [0, 1], and for any temperature but 1: another needs the teacher's whole
    distribution. Raises ModelError for shapes that do not fit, ids twice or outside of the vocabulary, and
    log-probabilities that add up to more than 1.
    """
    check_parameters(beta, temperature)
    if temperature != 1.0:
        raise ConfigError(
            f"distill.temperature={temperature} needs the teacher's whole distribution: top-k log-probabilities cannot "
            "be taken to another temperature; use 1, or a teacher that gives logits or hidden states"
        )
    student, teacher = topk_buckets(student_logits, ids, teacher_logprobs)
    return generalized_jsd(student, teacher, beta=beta)  # whose softmax takes out what rounding added to the total


def topk_buckets(
    student_logits: Float[Tensor, "T V"], ids: Int[Tensor, "T k"], teacher_logprobs: Float[Tensor, "T k"]
) -> tuple[Float[Tensor, "T b"], Float[Tensor, "T b"]]:
    """Return both sides' logits over `ids` and the tail, in float32; b is k + 1, or k where no id is left for a tail.

    Arguments, gradient, tail and what raises ModelError are as in `topk_generalized_jsd`. Of these distributions, which
    merge ids, any f-divergence is a lower bound of that over the vocabulary.
    """
    _check(student_logits, ids, teacher_logprobs)
    student = _student_buckets(student_logits, ids.long())
    teacher = _teacher_buckets(teacher_logprobs.detach(), student.detach())
    if ids.shape[1] == student_logits.shape[1]:  # no tail is left, whatever rounding says
        student, teacher = student[:, :-1], teacher[:, :-1]
    return student, teacher


def _student_buckets(logits: Tensor, ids: Tensor) -> Float[Tensor, "T k+1"]:
    """Return the logits of the ids, and the logsumexp of all others, -inf if there are none.

    All are less the token's largest logit, or they would be rounded to the precision of what the logits have in common.
    """
    return _Buckets.apply(logits, ids)  # type: ignore[no-any-return]


class _Buckets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        num_tokens, k = ids.shape
        buckets = torch.empty(num_tokens, k + 1, dtype=torch.float32, device=logits.device)
        for rows in row_blocks(num_tokens, logits.shape[1], logits.device):
            block = _without_offset(logits[rows])
            buckets[rows, :k] = block.gather(1, ids[rows])
            buckets[rows, k] = block.scatter(1, ids[rows], -torch.inf).logsumexp(-1)
        ctx.save_for_backward(logits, ids, buckets[:, k:].clone())
        return buckets

    @staticmethod
    @once_differentiable  # untyped, and so seems to rename ctx
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (logits, ids, tail), (grad_buckets,) = ctx.saved_tensors, grad_outputs
        grad = torch.empty_like(logits)
        for rows in row_blocks(len(logits), logits.shape[1], logits.device):
            # An id's share of the tail; for the ids outside of it anything up to inf, overwritten next.
            share = _without_offset(logits[rows]).sub_(tail[rows].clamp(min=MASKED_LOGIT)).exp_()
            grad[rows] = share.mul_(grad_buckets[rows, -1:]).scatter_(1, ids[rows], grad_buckets[rows, :-1])
        return grad, None


def _without_offset(logits: Tensor) -> Tensor:
    """Return a float32 copy less its rows' largest: to a divergence the same, to the backward pass a constant."""
    logits = logits.float()
    return logits - logits.amax(-1, keepdim=True).clamp_(min=MASKED_LOGIT)


def _teacher_buckets(logprobs: Tensor, student: Tensor) -> Tensor:
    """Return [T, k + 1] float32: the log-probabilities, and that of the tail."""
    # In float64 only so that adding up adds no rounding to that of the log-probabilities themselves.
    probs = logprobs.double().exp()
    rest = 1.0 - probs.sum(-1, keepdim=True)
    if not bool((rest >= 1.0 - _MAX_TOTAL).all()):
        raise ModelError(
            f"teacher_logprobs add up to a probability of {1.0 - float(rest.min()):.4g} at one token; they must be "
            "log-probabilities in nats over the teacher's whole vocabulary"
        )
    # Each log-probability is off by up to eps / 2 of itself, and all by the rounding of what normalized them.
    eps = torch.finfo(logprobs.dtype).eps
    rounding = eps / 2 * -torch.xlogy(probs, probs).sum(-1, keepdim=True) + 2 * min(eps, _EPS)
    students = student.double().log_softmax(-1)[:, -1:]
    tail = torch.where(rest > rounding, rest.log(), students.minimum((2 * rounding).log()))
    return torch.cat([logprobs.float(), tail.float()], dim=-1)


def _check(student_logits: Tensor, ids: Tensor, teacher_logprobs: Tensor) -> None:
    shapes = f"student_logits {list(student_logits.shape)}, ids {list(ids.shape)}"
    if student_logits.dim() != 2 or ids.dim() != 2 or ids.shape != teacher_logprobs.shape or ids.shape[1] < 1:
        raise ModelError(
            f"{shapes} and teacher_logprobs {list(teacher_logprobs.shape)} must be [tokens, vocabulary], [tokens, k] "
            "and [tokens, k] with k >= 1"
        )
    vocab_size = student_logits.shape[1]
    if len(ids) != len(student_logits) or ids.shape[1] > vocab_size:
        raise ModelError(f"{shapes}: both must have the same tokens, and no more ids than the vocabulary")
    if not len(ids):
        return
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise ModelError(
            f"ids reach from {int(ids.min())} to {int(ids.max())}, but the student has {vocab_size}; student and "
            "teacher must share a tokenizer"
        )
    ordered = ids.sort(-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise ModelError("an id occurs twice in a row of ids, so its probability would count twice; give each once")
