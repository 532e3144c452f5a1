"""The generalized Jensen-Shannon divergence of some rows of logits, and its gradient, in closed form.

Shapes: R rows (tokens), V vocabulary. Both sides' logits arrive divided by the temperature T.

With p = softmax(student), q = softmax(teacher), m = beta q + (1 - beta) p the loss (GKD, Agarwal et al. 2024, eq. 1) is

    beta = 0      KL(q || p) = sum q (log q - log p)
    beta = 1      KL(p || q) = sum p (log p - log q)
    between       beta KL(q || m) + (1 - beta) KL(p || m)

and its gradient with respect to the student's logits before their division by T is (1 / T) times

    beta = 0      p - q
    beta = 1      p (log p - log q - loss)
    between       (1 - beta) p (log p - log m - KL(p || m)),        for d loss / d p = (1 - beta) (log p - log m):
                  the two derivatives of log m cancel because beta q / m + (1 - beta) p / m = 1

A *slope* is that gradient without its constant factor, `slope_factor`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Stands for a masked logit, -inf: its probability is 0, and the difference of two of them is 0 instead of nan.
MASKED_LOGIT = -1e30
INFINITE_LOSS = 1e20  # and above: what such a logit against a real one has added up to


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """Return a float32 copy, divided by the temperature, without -inf, and with 0 as each row's largest.

    Or else what the logits have in common would take digits from the logsumexp, and with it from log q - log p.
    """
    logits = (logits.float() / temperature).clamp_(min=MASKED_LOGIT)
    return logits.sub_(logits.amax(-1, keepdim=True))


def slope_factor(beta: float, temperature: float) -> float:
    """Return what makes a slope the gradient with respect to the logits before their division by the temperature."""
    return (1.0 - beta if 0.0 < beta < 1.0 else 1.0) / temperature


def largest_log_ratio(far_weight: float) -> float:
    """Return the log ratio to clamp at.

    Beyond it near is below e^-20 of what far adds to m, and both sides' terms are at their limits.
    """
    return min(20.0 - math.log(far_weight), 85.0) if far_weight > 0.0 else 85.0


def loss_and_slope(
    student: Float[Tensor, "R V"],
    teacher: Float[Tensor, "R V"],
    beta: float,
    *,
    with_slope: bool,
    scratch: tuple[Float[Tensor, "R V"], Float[Tensor, "R V"]] | None = None,
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R V"] | None]:
    """Return each row's loss in nats, and its slope when asked for. Both inputs must be float32 and are overwritten.

    So is the float32 `scratch`, of which the slope is a part then; without it memory is asked for.
    """
    p_buffer, q_buffer = scratch or (None, None)
    p, student_lse = softmax_and_logsumexp(student, out=p_buffer)
    q, teacher_lse = softmax_and_logsumexp(teacher, out=q_buffer)
    # The logarithm of the side that is far in m over the one that is near, without that of a probability that has
    # underflowed; the other buffer is free from here on.
    if beta <= 0.5:
        log_ratio, spare = teacher.sub_(student).sub_((teacher_lse - student_lse)[:, None]), student
    else:
        log_ratio, spare = student.sub_(teacher).sub_((student_lse - teacher_lse)[:, None]), teacher
    if beta == 0.0:
        loss = log_ratio.mul_(q).sum(-1)
        return _clean(loss), p.sub_(q) if with_slope else None
    if beta == 1.0:
        weighted = log_ratio.mul_(p)
        loss = _clean(weighted.sum(-1))
        return loss, weighted.addcmul_(p, loss[:, None], value=-1.0) if with_slope else None
    return _between(p, q, log_ratio, spare, beta, with_slope=with_slope)


def _between(
    p: Tensor, q: Tensor, log_ratio: Tensor, spare: Tensor, beta: float, *, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """0 < beta < 1. Written around the side that weighs more in m ("near"), so that beta near 0 or 1 loses no digits:

    with e the weight of the other side ("far") and r = log far - log near,
    log m - log near = log1p(e expm1(r)), and log m - log far = log1p(e expm1(r)) - r.
    """
    near, far, e = (p, q, beta) if beta <= 0.5 else (q, p, 1.0 - beta)
    limit = largest_log_ratio(e)
    log_ratio.clamp_(-limit, limit)
    log_mix = torch.expm1(log_ratio, out=spare).mul_(e).log1p_()
    far_terms = log_ratio.sub_(log_mix).mul_(far)
    near_terms = log_mix.mul_(near).neg_()
    kl_far, kl_near = far_terms.sum(-1), near_terms.sum(-1)
    loss = _clean(e * kl_far + (1.0 - e) * kl_near)
    if not with_slope:
        return loss, None
    terms, kl = (near_terms, kl_near) if beta <= 0.5 else (far_terms, kl_far)
    return loss, terms.addcmul_(p, kl[:, None], value=-1.0)


def softmax_and_logsumexp(logits: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return softmax [R, V], in `out` if given, and logsumexp [R].

    On CPU the fused softmax costs less than exp: the rest follows from it.
    """
    probs = torch.softmax(logits, dim=-1, out=out)
    # On CPU it adds up in plain float32, 1e-5 off at V = 49,152; a pairwise sum of its result mends that.
    total = probs.sum(-1)
    logsumexp = logits.amax(-1) - (probs.amax(-1) / total).log_()
    return probs.div_(total[:, None]), logsumexp


def _clean(loss: Tensor) -> Tensor:
    """Take out what rounding leaves below 0, and make a masked logit against a real one infinity."""
    return loss.clamp_(min=0.0).masked_fill_(loss > INFINITE_LOSS, math.inf)
