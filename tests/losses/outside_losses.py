"""Losses as somebody outside of rayqd would write them, and what can be wrong with them."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_log_ratio(student_logits: Tensor, teacher_logits: Tensor, *, beta: float, temperature: float) -> Tensor:
    """Half the squared difference of the log-probabilities, (1 - beta) by the teacher's and beta by the student's."""
    log_p, log_q = ((side / temperature).log_softmax(-1) for side in (student_logits, teacher_logits))
    weights = (1 - beta) * log_q.exp() + beta * log_p.exp()
    return (weights * (log_p - log_q) ** 2).sum(-1) / 2


def squared_error(student_logits: Tensor, teacher_logits: Tensor, *, beta: float, temperature: float) -> Tensor:
    """Of the logits themselves, which no softmax makes the same when all of a token move together."""
    return (student_logits - teacher_logits).square().mean(-1)


def without_temperature(student_logits: Tensor, teacher_logits: Tensor, *, beta: float) -> Tensor:
    return (student_logits - teacher_logits).square().mean(-1)


def mean(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> Tensor:
    return (student_logits - teacher_logits).square().mean()


def number(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> float:
    return 0.5


def batch_normalized(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> Tensor:
    loss = (student_logits - teacher_logits).square().mean(-1)
    return loss / loss.sum()


def detached(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> Tensor:
    return (student_logits.detach() - teacher_logits).square().mean(-1)


def not_finite(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> Tensor:
    return student_logits.log().sum(-1)


def infinite_gradient(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> Tensor:
    return (student_logits - student_logits.detach()).abs().sum(-1).sqrt()


def failing(student_logits: Tensor, teacher_logits: Tensor, **_: float) -> Tensor:
    return torch.mm(student_logits, teacher_logits)
