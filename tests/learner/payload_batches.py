"""Batches with a teacher's payloads, of random states and heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.learner.objective import Objective
from rayqd.teacher.payloads import payload_spec
from rayqd.types import Rollout, ScoredRollout

V, D = 128, 16
LENGTHS = [(5, 9), (17, 3), (2, 1), (30, 14)]  # of a prompt and its completion
T = sum(c for _, c in LENGTHS)


def random_heads() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(V, D), torch.randn(V, D)


def random_states() -> tuple[Tensor, Tensor]:
    """Of student and teacher, [T, D], not far from each other."""
    torch.manual_seed(2)
    student = torch.randn(T, D)
    return student, student + 0.1 * torch.randn(T, D)


def scored(states: Tensor, head: Tensor, rollouts: list[Rollout], temperature: float, **settings: Any) -> Any:
    sections = {"teacher": settings, "distill": {"temperature": temperature}, "rollout": {"temperature": temperature}}
    spec = payload_spec(Config.model_validate(sections), len(head))
    parts = states.split([rollout.num_loss_tokens for rollout in rollouts])
    payloads = [spec.compute(part, head, rollout) for part, rollout in zip(parts, rollouts, strict=True)]
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]


def loss_and_gradient(objective: Objective, hidden: Tensor, batch: list[ScoredRollout]) -> tuple[Tensor, Tensor]:
    leaf = hidden.clone().requires_grad_()
    loss = objective(leaf, batch)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad
