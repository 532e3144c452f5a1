"""The top-k divergence against a float64 loop over its buckets, float64 autograd, and the divergence it bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayqd.errors import ConfigError, ModelError
from rayqd.losses import generalized_jsd, topk_generalized_jsd

BETAS = [0.0, 1e-6, 0.1, 0.5, 0.9, 1.0]
VOCAB = 60
INF = math.inf


def sides(num_tokens=6, vocab_size=VOCAB, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(num_tokens, vocab_size, generator=generator) for _ in range(2)]


def top_of(teacher, k, dtype=torch.float32):
    """What a teacher sends: ids and log-probabilities, computed in float64 and rounded once."""
    logprobs, ids = teacher.double().log_softmax(-1).topk(k)
    return ids, logprobs.to(dtype)


def gradient(loss, wrt):
    return torch.autograd.grad(loss.sum(), wrt, retain_graph=True)[0]


def bucketed(jsd_by_definition, student, teacher, ids, beta):
    """The loop of conftest.py over the logarithms of k + 1 masses, added up id by id."""
    losses = []
    for t in range(len(student)):
        chosen = ids[t].tolist()
        masses = []
        for row in (student[t].double().tolist(), teacher[t].double().tolist()):
            weights = [math.exp(x - max(row)) for x in row]
            tail = math.fsum(w for i, w in enumerate(weights) if i not in chosen)
            masses.append([math.log(m) for m in (*(weights[i] for i in chosen), tail)])
        losses.append(jsd_by_definition(np.array(masses[:1]), np.array(masses[1:]), beta)[0])
    return np.array(losses)


def gradient_in_float64(student, teacher, ids, beta):
    student = student.detach().double().requires_grad_()
    p, q = student.softmax(-1), teacher.double().softmax(-1)
    inside = torch.zeros_like(p).scatter(1, ids, 1.0)
    p, q = (torch.cat([x.gather(1, ids), (x * (1 - inside)).sum(-1, keepdim=True)], dim=1) for x in (p, q))
    m = beta * q + (1 - beta) * p
    if beta == 0:
        loss = q * (q / p).log()
    elif beta == 1:
        loss = p * (p / q).log()
    else:
        loss = beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()
    return gradient(loss, student)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_are_those_of_the_buckets(jsd_by_definition, beta, k):
    student, teacher = sides()
    ids, logprobs = top_of(teacher, k)
    loss = topk_generalized_jsd(student.requires_grad_(), ids, logprobs, beta=beta)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(
        loss.detach().numpy(), bucketed(jsd_by_definition, student, teacher, ids, beta), rtol=1e-6, atol=5e-7
    )
    expected = gradient_in_float64(student, teacher, ids, beta)
    torch.testing.assert_close(gradient(loss, student).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_any_ids_in_any_order_will_do(jsd_by_definition, beta):
    student, teacher = sides()
    ids = torch.stack([torch.randperm(VOCAB, generator=torch.Generator().manual_seed(t))[:9] for t in range(6)])
    logprobs = teacher.double().log_softmax(-1).gather(1, ids).float()
    loss = topk_generalized_jsd(student, ids.int(), logprobs, beta=beta)
    expected = bucketed(jsd_by_definition, student, teacher, ids, beta)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", BETAS)
def test_all_ids_and_all_but_one_are_the_exact_divergence(beta, dtype):
    # scale 1: the last id's probability, the tail at k = V - 1, is then far above float32's rounding of the others.
    student, teacher = sides(scale=1.0)
    student.requires_grad_()
    exact = generalized_jsd(student, teacher, beta=beta)
    for k in (VOCAB, VOCAB - 1):
        loss = topk_generalized_jsd(student, *top_of(teacher, k, dtype), beta=beta)
        torch.testing.assert_close(loss, exact, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient(loss, student), gradient(exact, student), rtol=1e-5, atol=1e-6)


def test_an_exact_tail_far_below_float32_takes_float64_log_probabilities():
    # p = (1/2, 1/2), q = (1 - e^-30, e^-30): KL(p || q) = log(1/2) + 30 / 2.
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[30.0, 0.0]])
    exact = generalized_jsd(student, teacher, beta=1.0).item()
    assert topk_generalized_jsd(student, *top_of(teacher, 1, torch.float64), beta=1.0).item() == pytest.approx(
        exact, rel=1e-3
    )
    # In float32 1 - e^-30 is 1, and a tail of up to 2 * 2 * 2^-23 is open: log(1/2) - log(2^-21) / 2.
    floored = topk_generalized_jsd(student, *top_of(teacher, 1), beta=1.0).item()
    assert floored == pytest.approx(math.log(0.5) + 21 * math.log(2) / 2, rel=1e-6)
    assert floored < exact


@pytest.mark.parametrize("beta", BETAS)
def test_a_lower_bound_that_rises_with_k(beta):
    student, teacher = sides()
    exact = generalized_jsd(student, teacher, beta=beta)
    losses = [topk_generalized_jsd(student, *top_of(teacher, k), beta=beta) for k in (1, 2, 8, 30, VOCAB)]
    for smaller, larger in zip(losses, [*losses[1:], exact], strict=True):
        assert (smaller <= larger * (1 + 2e-6) + 1e-6).all()
    assert (losses[0] < exact).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 8).flatmap(
        lambda n: st.tuples(*[st.lists(st.floats(-50, 50, width=32), min_size=n, max_size=n)] * 2, st.integers(1, n))
    ),
    beta=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_never_negative_and_never_above_the_exact_divergence(rows, beta, dtype):
    student, teacher, k = torch.tensor([rows[0]]), torch.tensor([rows[1]]), rows[2]
    loss = topk_generalized_jsd(student, *top_of(teacher, k, dtype), beta=beta).item()
    assert loss >= 0
    if dtype == torch.float32:
        # Above rounding a tail may still be off by it, about 1e-7 times a log-ratio of up to 100.
        assert loss <= generalized_jsd(student, teacher, beta=beta).item() * (1 + 1e-5) + 2e-5


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 5, VOCAB - 1, VOCAB])
def test_identical_sides_have_no_loss_and_no_gradient(beta, k):
    for scale in (1.0, 20.0):  # 20: all mass on a few ids, and tails below float32's rounding
        student, _ = sides(scale=scale)
        ids, logprobs = top_of(student, k)
        loss = topk_generalized_jsd(student.requires_grad_(), ids, logprobs, beta=beta)
        assert loss.max() < 2e-6
        assert gradient(loss, student).abs().max() < 2e-6


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 5, 29, 30])
def test_logits_of_ten_thousand_stay_finite(beta, k):
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (2, 5, 30), generator=generator) * 2.0 - 1.0
    student, teacher = 1e4 * signs + torch.randn(2, 5, 30, generator=generator)
    ids, logprobs = top_of(teacher, k)
    loss = topk_generalized_jsd(student.requires_grad_(), ids, logprobs, beta=beta)
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert gradient(loss, student).isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [5, VOCAB - 4, VOCAB - 3, VOCAB])
def test_ids_masked_on_both_sides_add_nothing(beta, k):
    student, teacher = sides()
    allowed = sides()[0][:, :-4].requires_grad_()
    student[:, -4:] = teacher[:, -4:] = -INF
    student.requires_grad_()
    ids, logprobs = top_of(teacher, k)
    loss = topk_generalized_jsd(student, ids, logprobs, beta=beta)
    shorter = top_of(teacher[:, :-4], min(k, VOCAB - 4))
    expected = topk_generalized_jsd(allowed, *shorter, beta=beta)
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=1e-7)
    grad = gradient(loss, student)
    torch.testing.assert_close(grad[:, :-4], gradient(expected, allowed), rtol=1e-5, atol=1e-7)
    assert (grad[:, -4:] == 0).all()


@pytest.mark.parametrize("beta", BETAS)
def test_a_common_offset_costs_no_precision(beta):
    student, teacher = (side.mul(16).round().div(16) for side in sides())  # exact with 4096 added to them
    ids, logprobs = top_of(teacher, 5)
    loss = topk_generalized_jsd(student + 4096.0, ids, logprobs, beta=beta)
    torch.testing.assert_close(loss, topk_generalized_jsd(student, ids, logprobs, beta=beta), rtol=1e-6, atol=5e-7)


def test_a_tail_masked_for_the_student_alone_makes_the_forward_kl_infinite():
    student, teacher = sides()
    ids, logprobs = top_of(teacher, 3)
    student[0] = student[0].scatter(0, ids[0], 0.0).masked_fill(torch.ones(VOCAB).scatter(0, ids[0], 0.0).bool(), -INF)
    loss = topk_generalized_jsd(student.requires_grad_(), ids, logprobs, beta=0.0)
    assert loss[0] == INF
    assert loss[1:].isfinite().all()
    assert gradient(loss, student).isfinite().all()
    assert topk_generalized_jsd(student, ids, logprobs, beta=0.5).isfinite().all()
    assert topk_generalized_jsd(student, ids, logprobs, beta=1.0).isfinite().all()


def test_log_probabilities_that_round_to_more_than_one_leave_no_negative_tail():
    # bfloat16 rounds log(1/4) = -1.3863 to -1.3828: four of them make 1.0035.
    quarters = torch.full((1, 4), math.log(1 / 4)).bfloat16()
    assert quarters.double().exp().sum() > 1.003
    student = torch.tensor([[0.0, 0.0, 0.0, 0.0, -30.0]], requires_grad=True)
    for beta in BETAS:
        loss = topk_generalized_jsd(student, torch.tensor([[0, 1, 2, 3]]), quarters, beta=beta)
        assert 0 <= loss.item() < 5e-6
        assert gradient(loss, student).abs().max() < 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32_and_the_teacher_gets_no_gradient(dtype):
    student, teacher = sides()
    student = student.to(dtype).requires_grad_()
    ids, logprobs = top_of(teacher, 5)
    logprobs.requires_grad_()
    loss = topk_generalized_jsd(student, ids, logprobs, beta=0.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, topk_generalized_jsd(student.float(), ids, logprobs, beta=0.5))
    loss.sum().backward()
    assert student.grad.dtype == dtype
    assert logprobs.grad is None


def test_no_tokens_one_token_one_id():
    for shape, k in (((0, 5), 2), ((1, 5), 2), ((3, 1), 1)):
        student = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = topk_generalized_jsd(student, *top_of(torch.zeros(shape), k), beta=0.5)
        assert loss.shape == shape[:1]
        assert gradient(loss, student).shape == shape
    assert (loss == 0).all()


def test_more_rows_than_a_block_are_the_rows_one_by_one_and_inputs_stay(monkeypatch):
    student, teacher = sides(num_tokens=7)
    before = student.clone()
    student.requires_grad_()
    ids, logprobs = top_of(teacher, 5)
    results = []
    for _ in range(2):
        loss = topk_generalized_jsd(student, ids, logprobs, beta=0.5)
        results.append((loss.detach(), gradient(loss, student)))
        monkeypatch.setattr("rayqd.losses.rows._BLOCK_ELEMENTS", {"cpu": 2 * VOCAB + 1})
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)
    assert torch.equal(student.detach(), before)


def test_another_temperature_is_refused():
    student, teacher = sides()
    with pytest.raises(ConfigError, match="cannot be taken to another temperature"):
        topk_generalized_jsd(student, *top_of(teacher, 5), beta=0.5, temperature=2.0)
    with pytest.raises(ConfigError, match="not positive"):
        topk_generalized_jsd(student, *top_of(teacher, 5), beta=0.5, temperature=0.0)
    with pytest.raises(ConfigError, match="beta"):
        topk_generalized_jsd(student, *top_of(teacher, 5), beta=1.5)


def test_what_does_not_fit_is_refused():
    student, teacher = sides()
    ids, logprobs = top_of(teacher, 5)

    def refused(match, *inputs):
        with pytest.raises(ModelError, match=match):
            topk_generalized_jsd(*inputs, beta=0.5)

    refused(r"\[tokens, k\]", student, ids, logprobs[:, 1:])
    refused("k >= 1", student, ids[:, :0], logprobs[:, :0])
    refused("same tokens", student[1:], ids, logprobs)
    refused("no more ids", student[:, :4], ids, logprobs)
    refused("share a tokenizer", student, ids + VOCAB, logprobs)
    refused("share a tokenizer", student, ids - VOCAB, logprobs)
    refused("twice", student, ids[:, :1].expand(-1, 5), logprobs)
    refused("add up to", student, ids, logprobs + 1.0)
    refused("add up to", student, ids, logprobs * math.nan)
