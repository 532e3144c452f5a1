"""The reverse KL from the sampled tokens' log-probabilities alone, for teachers that give nothing else.

Shapes: T tokens. At each token x was sampled after a fixed prefix; p is the student, q the teacher, and s the
distribution that x was sampled from: p itself, or an older or differently rounded student. With the importance ratio
w = p(x) / s(x), which is 1 if s = p, both functions estimate KL(p || q) = E_s[w (log p(x) - log q(x))] at that prefix.

In the names of Schulman, "Approximating KL divergence" (2020, joschu.net/blog/kl-approx.html), with r = q(x) / p(x):
k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r. Values and gradients must be told apart. Differentiating the
samples directly, with s = p, gives in expectation: from k1 nothing at all (E_p[grad log p] = 0); from k2 the gradient
of the reverse KL; from k3 the gradient of the *forward* KL (E_p[(1 - r) grad log p] = -E_q[grad log p]).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.losses.gradient import attach_gradient

# Nothing but a guard against overflow: an estimate with a ratio of e^60 is finite, but worth nothing.
_MAX_LOG_RATIO = 60.0


def sampled_reverse_kl(
    student_logprobs: Float[Tensor, " T"],
    teacher_logprobs: Float[Tensor, " T"],
    sampling_logprobs: Float[Tensor, " T"] | None = None,
) -> Float[Tensor, " T"]:
    """Return an unbiased estimate of KL(student || teacher) at each sampled token: nats, float32, value and gradient.

    The value is w k1 = w (log p - log q), of either sign. The gradient is the score-function (REINFORCE) estimator
    w (log p - log q) grad log p, with w and (log p - log q) as constants: policy gradient with log q - log p as reward.
    It leaves out w grad log p, whose expectation is 0. At w = 1 it is also the gradient of k2.

    Without `sampling_logprobs` w = 1: unbiased only if the tokens were sampled from the very p of `student_logprobs`,
    at its temperature and without top-p, top-k or minimum lengths; for tokens of older weights it is biased by the
    distance between s and p. With `sampling_logprobs` each token is reweighted by its own w: unbiased if s(x) > 0
    wherever p(x) > 0, with a variance that grows with w, which is not clipped.

    Unbiased for the KL at the prefixes as they were sampled, which is what `generalized_jsd` at beta = 1 computes in
    full. Neither corrects how often s visits a prefix (no product of earlier ratios), and neither counts what a token
    does to later ones, as the gradient of the KL between whole sequences would.

    A token with a student log-probability of -inf, which the student cannot have sampled, counts 0, with no gradient;
    one with a teacher log-probability of -inf alone has an infinite loss, and its gradient is not finite.
    Differentiable once, with respect to `student_logprobs`. Raises ModelError for unequal shapes.
    """
    _check(student_logprobs, teacher_logprobs, sampling_logprobs)
    log_p, log_q = student_logprobs.detach().float(), teacher_logprobs.detach().float()
    estimate = _weighted(log_p - log_q, log_p, sampling_logprobs)
    slope = estimate if torch.is_grad_enabled() and student_logprobs.requires_grad else None
    return attach_gradient(estimate, student_logprobs, slope)


def sampled_reverse_kl_k3(
    student_logprobs: Float[Tensor, " T"],
    teacher_logprobs: Float[Tensor, " T"],
    sampling_logprobs: Float[Tensor, " T"] | None = None,
) -> Float[Tensor, " T"]:
    """Return w k3 at each sampled token, an estimate of KL(student || teacher) in nats, float32, never negative.

    The value is unbiased under the same conditions as `sampled_reverse_kl` if besides p(x) > 0 wherever q(x) > 0, and
    of a far lower variance where the two are close. The gradient is that of k3 itself, w (1 - r) grad log p with w as a
    constant, as GRPO differentiates its KL penalty: in expectation that of the *forward* KL(teacher || student).

    Tokens with log-probabilities of -inf count as there; a ratio q / p above e^60 counts as e^60. Differentiable once,
    with respect to `student_logprobs`. Raises ModelError for unequal shapes.
    """
    _check(student_logprobs, teacher_logprobs, sampling_logprobs)
    log_p, log_q = student_logprobs.detach().float(), teacher_logprobs.detach().float()
    log_r = (log_q - log_p).clamp(max=_MAX_LOG_RATIO)
    # Rounding may leave expm1(r) a hair below r.
    estimate = _weighted((log_r.expm1() - log_r).clamp(min=0.0), log_p, sampling_logprobs)
    if not (torch.is_grad_enabled() and student_logprobs.requires_grad):
        return estimate
    return attach_gradient(estimate, student_logprobs, _weighted(-log_r.expm1(), log_p, sampling_logprobs))


def _weighted(estimate: Tensor, log_p: Tensor, sampling_logprobs: Tensor | None) -> Tensor:
    """Return w times the estimate; 0, also of inf, where w is 0 or where the student cannot have sampled the token."""
    impossible = log_p == -torch.inf
    if sampling_logprobs is None:
        return estimate.masked_fill(impossible, 0.0)
    ratio = (log_p - sampling_logprobs.detach().float()).clamp(max=_MAX_LOG_RATIO).exp()
    return (ratio * estimate).masked_fill(impossible | (ratio == 0.0), 0.0)


def _check(student: Tensor, teacher: Tensor, sampling: Tensor | None) -> None:
    shapes = [list(x.shape) for x in (student, teacher, sampling) if x is not None]
    if student.dim() != 1 or any(shape != shapes[0] for shape in shapes):
        names = "student_logprobs, teacher_logprobs" + ("" if sampling is None else ", sampling_logprobs")
        raise ModelError(f"{names} have the shapes {shapes}; all must be [tokens], one number for each sampled token")
