"""The generalized Jensen-Shannon divergence from logits. Shapes: T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rayqd.errors import ConfigError
from rayqd.losses.closed_form import divided, loss_and_slope, slope_factor
from rayqd.losses.rows import row_blocks
from rayqd.losses.shapes import check_logits


def generalized_jsd(
    student_logits: Float[Tensor, "T V"],
    teacher_logits: Float[Tensor, "T V"],
    *,
    beta: float,
    temperature: float = 1.0,
) -> Float[Tensor, " T"]:
    """Divergence of student and teacher at each token in nats, float32, over the full vocabulary (GKD, eq. 1).

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
    with_gradient = torch.is_grad_enabled() and student_logits.requires_grad
    return _GeneralizedJSD.apply(student_logits, teacher_logits.detach(), beta, temperature, with_gradient)  # type: ignore[no-any-return]


def curvature(beta: float) -> float:
    """What `generalized_jsd` of two close distributions is, as a multiple of their KL divergence.

    To second order in q - p both KL divergences are sum (q - p)^2 / 2p, and the generalized Jensen-Shannon divergence
    is beta (1 - beta) times that. Divided by it, the divergence also tends to KL(teacher || student) for beta towards 0
    and to KL(student || teacher) towards 1, which are its values there; by itself it vanishes at both ends.
    """
    return beta * (1.0 - beta) if 0.0 < beta < 1.0 else 1.0


def check_parameters(beta: float, temperature: float) -> None:
    """Raises ConfigError unless 0 <= beta <= 1 and temperature > 0."""
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(f"distill.beta={beta} is outside [0, 1]; 0 is the forward KL, 1 the reverse KL")
    if not temperature > 0.0:
        raise ConfigError(f"distill.temperature={temperature} is not positive; 1 leaves the logits as they are")


class _GeneralizedJSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, beta: float, temperature: float, with_gradient: bool
    ) -> Tensor:
        loss = torch.empty(len(student), dtype=torch.float32, device=student.device)
        slope = torch.empty_like(student, dtype=torch.float32) if with_gradient else None
        for rows in row_blocks(len(student), student.shape[1], student.device):
            loss[rows], block = loss_and_slope(
                divided(student[rows], temperature),
                divided(teacher[rows], temperature),
                beta,
                with_slope=with_gradient,
            )
            if slope is not None and block is not None:
                slope[rows] = block
        if slope is not None:
            ctx.save_for_backward(slope)
            ctx.factor, ctx.dtype = slope_factor(beta, temperature), student.dtype
        return loss

    @staticmethod
    @once_differentiable  # untyped, and so seems to rename ctx
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (slope,), (grad_loss,) = ctx.saved_tensors, grad_outputs
        return (slope * (grad_loss * ctx.factor)[:, None]).to(ctx.dtype), None, None, None, None
