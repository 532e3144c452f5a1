"""The generalized Jensen-Shannon divergence from logits. Shapes: T tokens, V vocabulary."""

from __future__ import annotations

from functools import partial

from jaxtyping import Float
from torch import Tensor

from rayqd.errors import ConfigError
from rayqd.losses.closed_form import loss_and_slope, slope_factor
from rayqd.losses.gradient import loss_of_logits
from rayqd.losses.shapes import check_logits


def generalized_jsd(
    student_logits: Float[Tensor, "T V"],
    teacher_logits: Float[Tensor, "T V"],
    *,
    beta: float,
    temperature: float = 1.0,
) -> Float[Tensor, " T"]:
    """Return the divergence of each token (GKD, eq. 1) in nats, float32, over the full vocabulary.

    beta = 0: KL(teacher || student); beta = 1: KL(student || teacher); between, with
    m = beta teacher + (1 - beta) student: beta KL(teacher || m) + (1 - beta) KL(student || m).
    Both sides' logits are divided by `temperature`; there is no factor of temperature squared.
    Differentiable once, with respect to `student_logits`.

    A logit of -inf masks its id. Masked on both sides it adds nothing. Masked for the student alone it makes the
    forward KL infinite (the gradient, p - q, stays finite), masked for the teacher alone the reverse KL, whose gradient
    then is not finite; between, the divergence stays below the entropy of (beta, 1 - beta).

    Raises ConfigError for a beta outside [0, 1] or a temperature that is not positive, ModelError for unequal shapes.
    """
    check_parameters(beta, temperature)
    check_logits(student_logits, teacher_logits)
    factor = slope_factor(beta, temperature)
    return loss_of_logits(
        student_logits, teacher_logits, temperature, partial(loss_and_slope, beta=beta), factor=factor
    )


def curvature(beta: float) -> float:
    """Return what `generalized_jsd` of two close distributions is, as a multiple of their KL divergence.

    To second order in q - p both KL divergences are sum (q - p)^2 / 2p, and the generalized Jensen-Shannon divergence
    is beta (1 - beta) times that. Divided by it, the divergence also tends to KL(teacher || student) for beta towards 0
    and to KL(student || teacher) towards 1, which are its values there; by itself it vanishes at both ends.
    """
    return beta * (1.0 - beta) if 0.0 < beta < 1.0 else 1.0


def check_parameters(beta: float, temperature: float) -> None:
    """Raise ConfigError unless 0 <= beta <= 1 and temperature > 0."""
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(f"distill.beta={beta} is outside [0, 1]; 0 is the forward KL, 1 the reverse KL")
    if not temperature > 0.0:
        raise ConfigError(f"distill.temperature={temperature} is not positive; 1 leaves the logits as they are")
