"""Skew KL divergences (DistiLLM, Ko et al. 2024, section 3.1). Shapes: T tokens, R rows of a block, V vocabulary.

With p = softmax(student / temperature), q = softmax(teacher / temperature):

    skew_kl            KL(q || a q + (1 - a) p),       a = 0: the forward KL
    skew_reverse_kl    KL(p || a p + (1 - a) q),       a = 0: the reverse KL

Both are KL(x || m), m = a x + (1 - a) y. With r = log y - log x, the terms and the share of y in m are

    log x - log m = -log(a + (1 - a) e^r),       u = (1 - a) y / m = sigmoid(r + log(1 - a) - log a)

and the gradients with respect to the student's logits are (1 / temperature) times

    skew_kl            p sum(q u) - q u                         for d / d p = -(1 - a) q / m = -q u / p
    skew_reverse_kl    p (g - sum(p g)), g = log p - log m + u  for d / d p = log p - log m + 1 - a p / m
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rayqd.errors import ConfigError
from rayqd.losses.closed_form import loss_and_slope, softmax_and_logsumexp
from rayqd.losses.divergence import check_parameters
from rayqd.losses.gradient import loss_of_logits
from rayqd.losses.shapes import check_logits

_MAX_EXPONENT = 80.0  # e^80 is still a float32


def skew_kl(
    student_logits: Float[Tensor, "T V"],
    teacher_logits: Float[Tensor, "T V"],
    *,
    alpha: float,
    temperature: float = 1.0,
) -> Float[Tensor, " T"]:
    """Return KL(teacher || alpha teacher + (1 - alpha) student) of each token in nats, float32, over the vocabulary.

    At most -log(alpha), whatever is masked with -inf on either side; alpha = 0 is the forward KL, `generalized_jsd` at
    beta = 0, and has its limits. Towards alpha = 1 it falls as (1 - alpha)^2, its rounding as 1e-7 (1 - alpha).
    Both sides' logits are divided by `temperature`, with no factor of temperature squared. Differentiable once, with
    respect to `student_logits`.

    Raises ConfigError for an alpha outside [0, 1) or a temperature that is not positive, ModelError for unequal shapes.
    """
    return _skew(student_logits, teacher_logits, alpha, temperature, reverse=False)


def skew_reverse_kl(
    student_logits: Float[Tensor, "T V"],
    teacher_logits: Float[Tensor, "T V"],
    *,
    alpha: float,
    temperature: float = 1.0,
) -> Float[Tensor, " T"]:
    """Return KL(student || alpha student + (1 - alpha) teacher) of each token in nats, float32, over the vocabulary.

    At most -log(alpha); alpha = 0 is the reverse KL, `generalized_jsd` at beta = 1. All else as for `skew_kl`.
    """
    return _skew(student_logits, teacher_logits, alpha, temperature, reverse=True)


def _skew(student: Tensor, teacher: Tensor, alpha: float, temperature: float, *, reverse: bool) -> Tensor:
    if not 0.0 <= alpha < 1.0:
        raise ConfigError(f"alpha={alpha} is outside [0, 1); 0 is the plain KL, and at 1 the skew KL is 0 everywhere")
    check_parameters(float(reverse), temperature)
    check_logits(student, teacher)
    function = partial(_loss_and_slope, alpha=alpha, reverse=reverse)
    return loss_of_logits(student, teacher, temperature, function, factor=1.0 / temperature)


def _loss_and_slope(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, alpha: float, reverse: bool, with_slope: bool
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R V"] | None]:
    """Return the loss of each row and its gradient with respect to the divided logits. May overwrite its inputs."""
    if alpha == 0.0:
        return loss_and_slope(student, teacher, float(reverse), with_slope=with_slope)
    x_logits, y_logits = (student, teacher) if reverse else (teacher, student)
    x, x_lse = softmax_and_logsumexp(x_logits)
    y, y_lse = softmax_and_logsumexp(y_logits)
    log_ratio = (y_logits - x_logits).sub_((y_lse - x_lse)[:, None])
    terms = _log_mix(log_ratio, alpha).neg_()
    loss = (x * terms).sum(-1).clamp_(min=0.0)  # rounding may leave -1e-8 where 0 is meant
    if not with_slope:
        return loss, None
    share = torch.sigmoid(log_ratio.add_(math.log1p(-alpha) - math.log(alpha)))
    if reverse:
        slope = terms.add_(share)
        return loss, slope.sub_((x * slope).sum(-1, keepdim=True)).mul_(x)
    weighted = share.mul_(x)
    return loss, y.mul_(weighted.sum(-1, keepdim=True)).sub_(weighted)


def _log_mix(log_ratio: Tensor, alpha: float) -> Tensor:
    """Return log(alpha + (1 - alpha) e^r) to float32's precision relative to itself, r near 0 or huge."""
    # r is cut off only where x is below e^-80
    near = log_ratio.clamp(max=_MAX_EXPONENT).expm1_().mul_(1.0 - alpha).log1p_()
    if alpha > 0.5:
        return near
    # Here 1 + (1 - alpha) expm1(r) would lose the digits of a small alpha.
    far = torch.logaddexp(log_ratio + math.log1p(-alpha), log_ratio.new_full((1,), math.log(alpha)))
    return torch.where(log_ratio.abs() <= 1.0, near, far)
