"""What payloads say less of than all, how losses are made of one size, and batches that are none."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayqd.config.sections import DistillConfig
from rayqd.errors import WorkerError
from rayqd.learner.objective import Objective
from rayqd.losses import generalized_jsd
from rayqd.types import Rollout
from tests.learner.payload_batches import (
    LENGTHS,
    D,
    V,
    loss_and_gradient,
    scored,
)

OUTSIDE = "tests.losses.outside_losses:squared_log_ratio"


@pytest.mark.parametrize(
    ("loss", "divisor"), [("jsd", 0.21), ("skew_kl", 0.49), ("skew_reverse_kl", 0.49), (OUTSIDE, 1)]
)
def test_normalize_divides_by_what_the_loss_is_of_two_close_distributions(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any, loss: str, divisor: float
) -> None:
    """0.3 · 0.7, 0.7², and nothing where nothing is known of it."""
    batch = scored(states[1], heads[1], make_rollouts(*LENGTHS), 1.0, payload="hidden")
    plain, normalized = (
        Objective(DistillConfig(loss=loss, beta=0.3, normalize=normalize), *heads)(states[0], batch)
        for normalize in (False, True)
    )
    torch.testing.assert_close(normalized * divisor, plain)


def test_fewer_ids_are_a_lower_bound_that_rises_with_k(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any
) -> None:
    objective = Objective(DistillConfig(beta=0.0), *heads)
    losses = []
    for k in (1, 4, 16, 64, V):
        batch = scored(states[1], heads[1], make_rollouts(*LENGTHS), 1.0, payload="topk", top_k=k)
        assert batch[0].payload.ids.shape == (LENGTHS[0][1], k)
        losses.append(objective(states[0], batch))
    for fewer, more in itertools.pairwise(losses):
        assert (fewer <= more + 1e-5).all()
    assert losses[0].sum() < 0.9 * losses[-1].sum()


def test_the_student_s_own_ids_are_the_ones_scored(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any
) -> None:
    rollouts = make_rollouts(*LENGTHS)
    own = (states[0] @ heads[0].t()).topk(8).indices.split([c for _, c in LENGTHS])
    rollouts = [
        Rollout(
            step=r.step, index=r.index, on_policy=True, prompt_ids=r.prompt_ids, completion_ids=r.completion_ids,
            policy_version=3, top_ids=ids.int().numpy(),
        )
        for r, ids in zip(rollouts, own, strict=True)
    ]  # fmt: skip
    batch = scored(states[1], heads[1], rollouts, 1.0, payload="topk", top_k=8, top_k_of="student")
    log_q = (states[1] @ heads[1].t()).double().log_softmax(-1).split([c for _, c in LENGTHS])
    for each, ids, whole in zip(batch, own, log_q, strict=True):
        assert np.array_equal(each.payload.ids, ids.numpy())
        np.testing.assert_allclose(each.payload.logprobs, whole.gather(1, ids).numpy(), atol=1e-5)


def test_sampled_log_probabilities_are_those_of_the_completion(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any
) -> None:
    rollouts = make_rollouts(*LENGTHS)
    batch = scored(states[1], heads[1], rollouts, 0.7, payload="sampled")
    tokens = torch.from_numpy(np.concatenate([r.completion_ids for r in rollouts])).long()[:, None]
    leaf = states[0].double().requires_grad_()
    log_p = (leaf @ heads[0].double().t() / 0.7).log_softmax(-1).gather(1, tokens)[:, 0]
    log_q = (states[1].double() @ heads[1].double().t() / 0.7).log_softmax(-1).gather(1, tokens)[:, 0]
    ((log_p - log_q).detach() * log_p).sum().backward()
    loss, gradient = loss_and_gradient(Objective(DistillConfig(temperature=0.7), *heads), states[0], batch)
    torch.testing.assert_close(loss.double(), (log_p - log_q).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("payload", ["hidden", "logits", "topk"])
def test_rows_that_only_one_head_has_do_not_count(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any, payload: str
) -> None:
    padded = torch.cat([heads[1], 50 * torch.randn(9, D)])
    settings = {"payload": payload, "top_k": 8}
    plain, wide = (
        Objective(DistillConfig(beta=0.5), heads[0], head)(
            states[0], scored(states[1], head[:V], make_rollouts(*LENGTHS), 1.0, **settings)
        )
        for head in (heads[1], padded)
    )
    assert torch.equal(plain, wide)


def test_normalized_gradients_are_of_one_size_over_beta(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any
) -> None:
    """Between them lies the factor 50 that beta (1 - beta) spans from 0.5 to 0.005."""
    betas = [0.0, 0.005, 0.1, 0.5, 0.9, 0.995, 1.0]
    batch = scored(states[1], heads[1], make_rollouts(*LENGTHS), 1.0, payload="hidden")
    head = heads[1]  # the same on both sides: only the states differ, by a tenth

    def norms(*, normalize: bool) -> Tensor:
        objectives = [Objective(DistillConfig(beta=beta, normalize=normalize), head, head) for beta in betas]
        return torch.stack([loss_and_gradient(each, states[0], batch)[1].norm() for each in objectives])

    as_it_is, normalized = norms(normalize=False), norms(normalize=True)
    assert as_it_is.max() / as_it_is.min() > 50
    assert normalized.max() / normalized.min() < 1.5


@pytest.mark.parametrize(("near", "end"), [(1e-4, 0.0), (1 - 1e-4, 1.0)])
def test_normalized_it_tends_to_the_kl_divergence_at_both_ends(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any, near: float, end: float
) -> None:
    batch = scored(states[1], heads[0], make_rollouts(*LENGTHS), 1.0, payload="hidden")
    close, limit = (
        loss_and_gradient(Objective(DistillConfig(beta=beta), heads[0], heads[0]), states[0], batch)
        for beta in (near, end)
    )
    torch.testing.assert_close(close[0], limit[0], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(close[1], limit[1], rtol=2e-2, atol=1e-3)
    (exact,) = [generalized_jsd(states[0] @ heads[0].t(), states[1] @ heads[0].t(), beta=end)]
    torch.testing.assert_close(limit[0], exact, rtol=1e-4, atol=1e-5)


def test_payloads_of_two_kinds_in_one_batch_are_refused(
    heads: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], make_rollouts: Any
) -> None:
    rollouts = make_rollouts(*LENGTHS)
    one = scored(states[1], heads[1], rollouts, 1.0, payload="topk")
    other = scored(states[1], heads[1], rollouts, 1.0, payload="sampled")
    with pytest.raises(WorkerError, match="mixes"):
        Objective(DistillConfig(), *heads)(states[0], [*one[:2], *other[2:]])
