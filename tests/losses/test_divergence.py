"""generalized_jsd against its definition in float64 (conftest.py), against float64 autograd, and at the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayqd.errors import ConfigError, ModelError
from rayqd.losses import generalized_jsd

BETAS = [0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-6, 1.0]
INF = math.inf
LOGIT = st.floats(-50, 50, width=32)


def logits(num_tokens=6, vocab_size=60, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(num_tokens, vocab_size, generator=generator)
    return student, scale * torch.randn(num_tokens, vocab_size, generator=generator)


def gradient(loss, wrt):
    return torch.autograd.grad(loss.sum(), wrt)[0]


def gradient_in_float64(student, teacher, beta, temperature):
    """Autograd through the definition, term by term."""
    student = student.double().requires_grad_()
    p = torch.softmax(student / temperature, -1)
    q = torch.softmax(teacher.double() / temperature, -1)
    m = beta * q + (1 - beta) * p
    if beta == 0:
        loss = q * (q / p).log()
    elif beta == 1:
        loss = p * (p / q).log()
    else:
        loss = beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()
    return gradient(loss, student)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_value_is_the_definition(jsd_by_definition, beta, temperature):
    student, teacher = logits()
    loss = generalized_jsd(student, teacher, beta=beta, temperature=temperature)
    expected = jsd_by_definition(student.numpy(), teacher.numpy(), beta, temperature)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_gradient_is_that_of_float64_autograd(beta, temperature):
    student, teacher = logits()
    student.requires_grad_()
    grad = gradient(generalized_jsd(student, teacher, beta=beta, temperature=temperature), student)
    expected = gradient_in_float64(student.detach(), teacher, beta, temperature)
    error = (grad - expected).abs().amax(-1) / expected.abs().amax(-1)
    # p (r - K) in float32: where one id has nearly all of p, r - K loses digits that r = log p - log m had.
    assert error.max() < 5e-6


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_gradient_is_the_slope_of_the_definition(jsd_by_definition, beta):
    student, teacher = logits(num_tokens=2, vocab_size=12)
    student.requires_grad_()
    grad = gradient(generalized_jsd(student, teacher, beta=beta, temperature=1.5), student)
    base, step = student.detach().double().numpy(), 1e-5
    for token, index in np.ndindex(*base.shape):
        up, down = base.copy(), base.copy()
        up[token, index] += step
        down[token, index] -= step
        rise = jsd_by_definition(up, teacher, beta, 1.5) - jsd_by_definition(down, teacher, beta, 1.5)
        assert grad[token, index].item() == pytest.approx(rise.sum() / (2 * step), rel=1e-5, abs=1e-7)


def test_two_ids_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4). KL(q||p) = 3/4 ln 3/2 + 1/4 ln 1/2; KL(p||q) = 1/2 ln 2/3 + 1/2 ln 2.
    # beta = 1/2: m = (5/8, 3/8); loss = 1/2 (3/4 ln 6/5 + 1/4 ln 2/3) + 1/2 (1/2 ln 4/5 + 1/2 ln 4/3).
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = {0.0: 0.130812, 1.0: 0.143841, 0.5: 0.033822}
    for beta, value in expected.items():
        assert generalized_jsd(student, teacher, beta=beta).item() == pytest.approx(value, abs=1e-6)


def test_each_token_is_weighted_by_what_comes_from_above():
    student, teacher = logits()
    weights = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0, 1e-3])
    student.requires_grad_()
    grad = gradient(generalized_jsd(student, teacher, beta=0.5) * weights, student)
    expected = gradient_in_float64(student.detach(), teacher, 0.5, 1.0) * weights[:, None]
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_identical_sides_have_no_loss_and_no_gradient(beta):
    student, _ = logits(vocab_size=1000, scale=5.0)
    student.requires_grad_()
    loss = generalized_jsd(student, student.detach().clone(), beta=beta)
    grad = gradient(loss, student)
    assert loss.max() < 1e-6
    assert grad.abs().max() < 1e-7


@pytest.mark.parametrize("beta", BETAS)
def test_swapping_the_sides_and_beta_changes_nothing(beta):
    student, teacher = logits()
    torch.testing.assert_close(
        generalized_jsd(student, teacher, beta=beta),
        generalized_jsd(teacher, student, beta=1 - beta),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_keep_value_and_gradient_finite_and_right(jsd_by_definition, beta, size):
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (2, 5, 30), generator=generator) * 2.0 - 1.0
    student, teacher = size * signs + torch.randn(2, 5, 30, generator=generator)
    student.requires_grad_()
    loss = generalized_jsd(student, teacher, beta=beta)
    grad = gradient(loss, student)
    expected = jsd_by_definition(student.detach().numpy(), teacher.numpy(), beta)
    finite = np.isfinite(expected)  # e^-20000 is 0 in float64 too: there the loop has log 0
    np.testing.assert_allclose(loss.detach().numpy()[finite], expected[finite], rtol=2e-6)
    assert loss.isfinite().all()
    assert grad.isfinite().all()


def test_a_wrong_certainty_costs_the_difference_of_the_logits():
    # q = (1, 0), p = (0, 1): log q1 - log p1 = 1e4 - (-1e4) = 2e4.
    student, teacher = torch.tensor([[-1e4, 1e4]]), torch.tensor([[1e4, -1e4]])
    assert generalized_jsd(student, teacher, beta=0.0).item() == 2e4
    assert generalized_jsd(student, teacher, beta=1.0).item() == 2e4
    # Disjoint supports: the entropy of (beta, 1 - beta).
    assert generalized_jsd(student, teacher, beta=0.5).item() == pytest.approx(math.log(2), rel=2e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_ids_masked_on_both_sides_add_nothing(beta):
    student, teacher = logits()
    masked = [torch.cat([side, torch.full((6, 4), -INF)], dim=1) for side in (student, teacher)]
    masked[0].requires_grad_()
    student.requires_grad_()
    loss, expected = generalized_jsd(*masked, beta=beta), generalized_jsd(student, teacher, beta=beta)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    grad = gradient(loss, masked[0])
    torch.testing.assert_close(grad[:, :-4], gradient(expected, student), rtol=1e-5, atol=1e-9)
    assert (grad[:, -4:] == 0).all()


def test_an_id_masked_for_the_student_alone_makes_the_forward_kl_infinite(jsd_by_definition):
    student, teacher = logits()
    student[0, 3] = -INF
    student.requires_grad_()
    loss = generalized_jsd(student, teacher, beta=0.0)
    grad = gradient(loss, student)
    assert loss[0] == INF
    assert loss[1:].isfinite().all()
    expected = torch.softmax(student.detach(), -1) - torch.softmax(teacher, -1)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)
    for beta in BETAS[1:]:
        expected = jsd_by_definition(student.detach().numpy(), teacher.numpy(), beta)
        np.testing.assert_allclose(generalized_jsd(student, teacher, beta=beta).detach().numpy(), expected, rtol=2e-6)


def test_an_id_masked_for_the_teacher_alone_makes_the_reverse_kl_infinite_and_its_gradient_too(jsd_by_definition):
    student, teacher = logits()
    teacher[0, 3] = -INF
    student.requires_grad_()
    loss = generalized_jsd(student, teacher, beta=1.0)
    grad = gradient(loss, student)
    assert loss[0] == INF
    assert not grad[0].isfinite().any()
    assert grad[1:].isfinite().all()
    for beta in BETAS[:-1]:
        expected = jsd_by_definition(student.detach().numpy(), teacher.numpy(), beta)
        np.testing.assert_allclose(generalized_jsd(student, teacher, beta=beta).detach().numpy(), expected, rtol=2e-6)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.lists(LOGIT, min_size=n, max_size=n)] * 2)),
    beta=st.floats(0, 1),
)
def test_never_negative_and_bounded_by_the_entropy_of_the_mixture(rows, beta):
    student, teacher = (torch.tensor([row]) for row in rows)
    loss = generalized_jsd(student, teacher, beta=beta).item()
    assert loss >= 0
    if 0 < beta < 1:
        entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        assert loss <= entropy * (1 + 1e-5)
    total_variation = 0.5 * (student.softmax(-1) - teacher.softmax(-1)).abs().sum().item()
    if beta in (0, 1):
        assert loss >= 2 * total_variation**2 - 1e-6  # Pinsker


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32_and_get_their_own_gradient(dtype):
    student, teacher = (side.to(dtype) for side in logits())
    student.requires_grad_()
    loss = generalized_jsd(student, teacher, beta=0.5)
    grad = gradient(loss, student)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, generalized_jsd(student.float(), teacher.float(), beta=0.5))


def test_more_rows_than_a_block_are_the_rows_one_by_one(monkeypatch):
    student, teacher = logits(num_tokens=7)
    whole = generalized_jsd(student, teacher, beta=0.5)
    monkeypatch.setattr("rayqd.losses.rows._BLOCK_ELEMENTS", {"cpu": 2 * 60 + 1})
    torch.testing.assert_close(generalized_jsd(student, teacher, beta=0.5), whole, rtol=1e-6, atol=0)


def test_inputs_are_left_as_they_were():
    student, teacher = logits()
    before = student.clone(), teacher.clone()
    generalized_jsd(student, teacher, beta=0.5)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_no_tokens_give_no_losses():
    student = torch.zeros(0, 5, requires_grad=True)
    loss = generalized_jsd(student, torch.zeros(0, 5), beta=0.5)
    grad = gradient(loss, student)
    assert loss.shape == (0,)
    assert grad.shape == (0, 5)


@pytest.mark.parametrize(
    ("beta", "temperature"), [(-0.1, 1.0), (1.1, 1.0), (math.nan, 1.0), (0.5, 0.0), (0.5, math.nan)]
)
def test_impossible_parameters_are_refused(beta, temperature):
    with pytest.raises(ConfigError):
        generalized_jsd(torch.zeros(1, 2), torch.zeros(1, 2), beta=beta, temperature=temperature)


def test_unequal_vocabularies_are_refused():
    with pytest.raises(ModelError, match="padded"):
        generalized_jsd(torch.zeros(1, 2), torch.zeros(1, 3), beta=0.5)
