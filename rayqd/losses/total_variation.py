"""The total variation distance between student and teacher. Shapes: T tokens, R rows of a block, V vocabulary.

With p = softmax(student / temperature) and q = softmax(teacher / temperature) it is sum |p - q| / 2. Its gradient with
respect to the student's logits is (1 / (2 temperature)) p (sign(p - q) - sum p sign(p - q)), with sign(0) = 0 for the
subgradient where p = q.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rayqd.losses.closed_form import softmax_and_logsumexp
from rayqd.losses.divergence import check_parameters
from rayqd.losses.gradient import loss_of_logits
from rayqd.losses.shapes import check_logits


def total_variation(
    student_logits: Float[Tensor, "T V"], teacher_logits: Float[Tensor, "T V"], *, temperature: float = 1.0
) -> Float[Tensor, " T"]:
    """Return sum |p - q| / 2 of student and teacher at each token, in [0, 1], float32, over the full vocabulary.

    The chance that two samplers with the best shared randomness disagree, so 1 minus the rate at which speculative
    decoding accepts (Leviathan et al. 2023, corollary 3.6). Both sides' logits are divided by `temperature`; -inf masks
    an id. Differentiable once, with respect to `student_logits`. Raises ConfigError for a temperature that is not
    positive, ModelError for unequal shapes.
    """
    check_parameters(0.0, temperature)
    check_logits(student_logits, teacher_logits)
    return loss_of_logits(student_logits, teacher_logits, temperature, _loss_and_slope, factor=0.5 / temperature)


def _loss_and_slope(
    student: Float[Tensor, "R V"], teacher: Float[Tensor, "R V"], *, with_slope: bool
) -> tuple[Float[Tensor, " R"], Float[Tensor, "R V"] | None]:
    p, q = softmax_and_logsumexp(student)[0], softmax_and_logsumexp(teacher)[0]
    difference = q.sub_(p)
    distance = difference.abs().sum(-1).mul_(0.5).clamp_(max=1.0)
    if not with_slope:
        return distance, None
    sign = difference.neg_().sign_()
    return distance, sign.sub_((p * sign).sum(-1, keepdim=True)).mul_(p)
