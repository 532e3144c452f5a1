"""What is trained on, for every payload of a teacher: against whole logits in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayqd.config.sections import DistillConfig
from rayqd.learner.objective import Objective
from rayqd.model.wire import from_wire
from rayqd.types import ScoredRollout, TeacherPayload
from tests.learner.payload_batches import (
    LENGTHS,
    T,
    V,
    loss_and_gradient,
    scored,
)

OUTSIDE = "tests.losses.outside_losses:squared_log_ratio"


def reference(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    """The divergence of logits, each its own sum, in float64."""
    log_p, log_q = ((x.double() / temperature).log_softmax(-1) for x in (student, teacher))
    p, q = log_p.exp(), log_q.exp()
    if beta == 0:
        return (q * (log_q - log_p)).sum(-1)
    if beta == 1:
        return (p * (log_p - log_q)).sum(-1)
    log_m = (beta * q + (1 - beta) * p).log()
    return beta * (q * (log_q - log_m)).sum(-1) + (1 - beta) * (p * (log_p - log_m)).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"payload": "hidden"}, 1e-5),
        ({"payload": "logits"}, 3e-3),  # float16 keeps 11 bits of each logit
        ({"payload": "topk", "top_k": V}, 1e-4),  # whose log-probabilities are rounded to float32
    ],
)
def test_every_payload_that_says_all_gives_the_exact_divergence(
    heads: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    make_rollouts: Any,
    beta: float,
    temperature: float,
    settings: dict[str, Any],
    tolerance: float,
) -> None:
    batch = scored(states[1], heads[1], make_rollouts(*LENGTHS), temperature, **settings)
    distill = DistillConfig(beta=beta, temperature=temperature, normalize=False)
    loss, gradient = loss_and_gradient(Objective(distill, *heads), states[0], batch)

    leaf = states[0].double().requires_grad_()
    expected = reference(leaf @ heads[0].double().t(), states[1] @ heads[1].t(), beta, temperature)
    expected.sum().backward()
    assert leaf.grad is not None
    scale = expected.detach().abs().max()
    assert (loss - expected.detach()).abs().max() <= tolerance * scale
    assert leaf.grad is not None
    assert (gradient - leaf.grad).abs().max() <= tolerance * leaf.grad.abs().max()


def kl(x: Tensor, m: Tensor) -> Tensor:
    return (x * (x / m).log()).sum()


# One token's loss of p, the student, and q, the teacher, in float64, from its definition.
OF_ONE_TOKEN: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "jsd": lambda p, q, b: b * kl(q, b * q + (1 - b) * p) + (1 - b) * kl(p, b * q + (1 - b) * p),
    "skew_kl": lambda p, q, b: kl(q, b * q + (1 - b) * p),
    "skew_reverse_kl": lambda p, q, b: kl(p, b * p + (1 - b) * q),
    "total_variation": lambda p, q, b: torch.stack([abs(x - y) for x, y in zip(p, q, strict=True)]).sum() / 2,
    OUTSIDE: lambda p, q, b: (((1 - b) * q + b * p) * (p.log() - q.log()) ** 2).sum() / 2,
}


@pytest.mark.parametrize("loss", OF_ONE_TOKEN)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"payload": "hidden"}, 1e-5),
        ({"payload": "logits"}, 1e-5),
        ({"payload": "topk", "top_k": V}, 2e-4),
    ],
)
def test_every_loss_is_that_of_a_float64_loop_over_the_tokens(
    heads: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    make_rollouts: Any,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    temperature: float,
    settings: dict[str, Any],
    tolerance: float,
) -> None:
    if loss == OUTSIDE and settings["payload"] == "topk":
        pytest.skip("takes whole logits")
    monkeypatch.setattr("rayqd.losses.rows._MAX_CHUNK_TOKENS", {"cpu": 5})  # and the last chunk has two
    batch = scored(states[1], heads[1], make_rollouts(*LENGTHS), temperature, **settings)
    distill = DistillConfig(loss=loss, beta=0.3, temperature=temperature, normalize=False)
    values, gradient = loss_and_gradient(Objective(distill, *heads), states[0], batch)

    leaf = states[0].double().requires_grad_()
    expected = []
    teacher = states[1].double() @ heads[1].double().t()
    if settings["payload"] == "logits":  # in float16, which moves a gradient that jumps where the sides are equal
        teacher = torch.cat([from_wire(each.payload.logits) for each in batch]).double()
    for hidden, teacher_logits in zip(leaf, teacher, strict=True):
        p, q = ((row / temperature).softmax(-1) for row in (hidden @ heads[0].double().t(), teacher_logits))
        expected.append(OF_ONE_TOKEN[loss](p, q, 0.3))
    torch.stack(expected).sum().backward()
    exact = torch.stack(expected).detach()
    assert (values - exact).abs().max() <= tolerance * exact.abs().max()
    assert leaf.grad is not None
    assert (gradient - leaf.grad).abs().max() <= tolerance * leaf.grad.abs().max()


def test_k3_is_the_estimate_and_its_own_slope(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any
) -> None:
    rollouts = make_rollouts(*LENGTHS)
    batch = scored(states[1], heads[1], rollouts, 0.7, payload="sampled")
    tokens = torch.from_numpy(np.concatenate([r.completion_ids for r in rollouts])).long()[:, None]
    leaf = states[0].double().requires_grad_()
    log_p, log_q = (
        (side.double() @ head.double().t() / 0.7).log_softmax(-1).gather(1, tokens)[:, 0]
        for side, head in zip((leaf, states[1]), heads, strict=True)
    )
    expected = (log_q - log_p).exp() - 1 - (log_q - log_p)
    expected.sum().backward()
    loss, gradient = loss_and_gradient(Objective(DistillConfig(loss="k3", temperature=0.7), *heads), states[0], batch)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-4, atol=1e-4 * leaf.grad.abs().max().item())


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyPayload(TeacherPayload):
    """From outside: what a teacher has to say of each token in one number, and what is to be made of it."""

    entropy: NDArray[np.float32]  # [C] nats

    @staticmethod
    def token_loss(
        student_logits: Tensor, completion_ids: Tensor, /, *, entropy: Tensor, beta: float, temperature: float
    ) -> Tensor:
        logprobs = (student_logits / temperature).log_softmax(-1)
        nll = -logprobs.gather(1, completion_ids[:, None])[:, 0]
        return (-(logprobs.exp() * logprobs).sum(-1) - entropy) ** 2 + beta * nll


def test_a_payload_from_outside_is_trained_on_by_its_own_loss(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayqd.losses.rows._MAX_CHUNK_TOKENS", {"cpu": 5})
    rollouts = make_rollouts(*LENGTHS)
    entropies = torch.rand(T, dtype=torch.float64)
    parts = entropies.split([c for _, c in LENGTHS])
    batch = [
        ScoredRollout(rollout=r, payload=EntropyPayload(entropy=part.float().numpy()))
        for r, part in zip(rollouts, parts, strict=True)
    ]
    leaf = states[0].double().requires_grad_()
    expected = []
    for token, (hidden, completion_id) in enumerate(
        zip(leaf, np.concatenate([r.completion_ids for r in rollouts]), strict=True)
    ):
        p = (hidden @ heads[0].double().t() / 1.5).softmax(-1)
        entropy = -sum(x * x.log() for x in p)
        expected.append((entropy - entropies[token]) ** 2 - 0.4 * p[int(completion_id)].log())
    torch.stack(expected).sum().backward()
    objective = Objective(DistillConfig(beta=0.4, temperature=1.5), *heads)
    loss, gradient = loss_and_gradient(objective, states[0], batch)
    torch.testing.assert_close(loss.double(), torch.stack(expected).detach(), rtol=1e-4, atol=1e-5)
    assert leaf.grad is not None
    assert (gradient - leaf.grad).abs().max() <= 1e-4 * leaf.grad.abs().max()
