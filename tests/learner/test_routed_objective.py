"""Sequences of several teachers in one batch: each token's loss and fidelity against its own teacher, in float64.

The second teacher is wider, and its head has more ids than the student's; the third's has fewer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.config.sections import DistillConfig
from rayqd.learner.objective import RoutedObjective
from rayqd.teacher.payloads import payload_spec
from rayqd.types import ScoredRollout
from tests.learner.payload_batches import LENGTHS, D, V, loss_and_gradient, random_states

SHAPES = [(V, D), (V + 8, D + 5), (V - 16, D)]  # of the teachers' heads
TEACHERS = [2, 0, 1, 0]  # of the sequences


def make_batch(make_rollouts: Any, **settings: Any) -> tuple[list[Tensor], list[Tensor], list[ScoredRollout]]:
    """Return the heads of all teachers, the states of each sequence's own, and the batch."""
    torch.manual_seed(3)
    heads = [torch.randn(*shape) for shape in SHAPES]
    rollouts = make_rollouts(*LENGTHS, vocab_size=V - 16)
    rollouts = [replace(rollout, teacher=t) for rollout, t in zip(rollouts, TEACHERS, strict=True)]
    states = [torch.randn(r.num_loss_tokens, SHAPES[r.teacher][1]) for r in rollouts]
    config = Config.model_validate({"teacher": settings})
    payloads = [
        payload_spec(config, min(V, len(heads[r.teacher]))).compute(own, heads[r.teacher], r)
        for r, own in zip(rollouts, states, strict=True)
    ]
    batch = [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True) if p is not None]
    assert len(batch) == len(rollouts)
    return heads, states, batch


def reference(hidden: Tensor, head: Tensor, heads: list[Tensor], states: list[Tensor]) -> Tensor:
    """KL(student‖teacher) of each sequence with its own teacher, one after the other, over the ids that both have."""
    parts = []
    for own, teacher, number in zip(hidden.split([c for _, c in LENGTHS]), states, TEACHERS, strict=True):
        common = min(V, len(heads[number]))
        log_p = (own.double() @ head[:common].double().T).log_softmax(-1)
        log_q = (teacher.double() @ heads[number][:common].double().T).log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"payload": "hidden"}, 1e-5),
        ({"payload": "logits"}, 3e-3),  # float16 keeps 11 bits of each logit
        ({"payload": "topk", "top_k": V - 16}, None),  # of the two larger vocabularies all other ids are one
    ],
)
def test_every_sequence_is_held_against_its_own_teacher(
    settings: dict[str, Any], tolerance: float | None, make_rollouts: Any
) -> None:
    heads, states, batch = make_batch(make_rollouts, **settings)
    hidden, head = random_states()[0], torch.randn(V, D)
    loss, gradient = loss_and_gradient(RoutedObjective(DistillConfig(beta=1.0), head, heads), hidden, batch)
    leaf = hidden.clone().requires_grad_()
    expected = reference(leaf, head, heads, states)
    (of_states,) = torch.autograd.grad(expected.sum(), leaf)
    exact = slice(None) if tolerance else slice(0, LENGTHS[0][1])  # the third teacher's, whose ids are all there
    tolerance = tolerance or 1e-4
    torch.testing.assert_close(loss.double()[exact], expected.detach()[exact], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient[exact], of_states[exact], rtol=tolerance, atol=20 * tolerance)


def test_a_batch_of_one_teacher_has_the_bits_that_it_has_alone(make_rollouts: Any) -> None:
    heads, _, batch = make_batch(make_rollouts, payload="hidden")
    hidden, head = random_states()[0], torch.randn(V, D)
    parts = hidden.split([c for _, c in LENGTHS])
    objective = RoutedObjective(DistillConfig(beta=0.3), head, heads)
    alone = RoutedObjective(DistillConfig(beta=0.3), head, [heads[0]])
    own = [batch[1], batch[3]]
    states = torch.cat([parts[1], parts[3]])
    for one, other in zip(
        loss_and_gradient(objective, states, own), loss_and_gradient(alone, states, own), strict=True
    ):
        assert torch.equal(one, other)
