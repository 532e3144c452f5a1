"""The skew KLs against DistiLLM's formula in a float64 loop, float64 autograd, the JSD they make up, and the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayqd.errors import ConfigError, ModelError
from rayqd.losses import generalized_jsd, skew_kl, skew_reverse_kl

ALPHAS = [0.0, 1e-6, 0.1, 0.5, 0.51, 0.9]
BOTH = [skew_kl, skew_reverse_kl]
INF = math.inf


def logits(num_tokens=6, vocab_size=60, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(num_tokens, vocab_size, generator=generator)
    return student, scale * torch.randn(num_tokens, vocab_size, generator=generator)


def gradient(loss, wrt):
    return torch.autograd.grad(loss.sum(), wrt)[0]


def by_definition(which, student, teacher, alpha, temperature=1.0):
    """D_KL(q, a q + (1 - a) p) and D_KL(p, (1 - a) q + a p), one id at a time (Ko et al. 2024, section 3.1)."""
    losses = []
    for rows in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        sides = []
        for row in rows:
            weights = [math.exp((x - max(row)) / temperature) for x in row]
            sides.append([w / math.fsum(weights) for w in weights])
        p, q = sides
        x, y = (q, p) if which is skew_kl else (p, q)
        mixed = [alpha * a + (1 - alpha) * b for a, b in zip(x, y, strict=True)]
        terms = [a * math.log(a / m) if m > 0 else INF for a, m in zip(x, mixed, strict=True) if a > 0]
        losses.append(math.fsum(terms))
    return np.array(losses)


def gradient_in_float64(which, student, teacher, alpha, temperature):
    student = student.detach().double().requires_grad_()
    p, q = (torch.softmax(side / temperature, -1) for side in (student, teacher.double()))
    x, y = (q, p) if which is skew_kl else (p, q)
    return gradient(x * (x / (alpha * x + (1 - alpha) * y)).log(), student)


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_and_gradient_are_the_definitions(which, alpha, temperature):
    student, teacher = logits()
    loss = which(student.requires_grad_(), teacher, alpha=alpha, temperature=temperature)
    assert loss.dtype == torch.float32
    expected = by_definition(which, student, teacher, alpha, temperature)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-6, atol=1e-7)
    grad, expected = gradient(loss, student), gradient_in_float64(which, student, teacher, alpha, temperature)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", BOTH)
def test_rounding_falls_with_one_minus_alpha(which):
    student, teacher = logits()
    loss = which(student, teacher, alpha=0.9999)
    expected = by_definition(which, student, teacher, 0.9999)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=0, atol=1e-6 * 1e-4)


def test_no_alpha_is_the_plain_kl():
    student, teacher = logits()
    for which, beta in ((skew_kl, 0.0), (skew_reverse_kl, 1.0)):
        torch.testing.assert_close(
            which(student, teacher, alpha=0.0), generalized_jsd(student, teacher, beta=beta), rtol=2e-6, atol=0
        )
        torch.testing.assert_close(
            which(student, teacher, alpha=1e-9), generalized_jsd(student, teacher, beta=beta), rtol=2e-6, atol=0
        )


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_two_weighted_by_beta_are_the_generalized_jsd(beta):
    # m = beta q + (1 - beta) p is the mixture of skew_kl at alpha = beta and of its reverse at 1 - beta.
    student, teacher = logits()
    student.requires_grad_()
    made_up = beta * skew_kl(student, teacher, alpha=beta)
    made_up = made_up + (1 - beta) * skew_reverse_kl(student, teacher, alpha=1 - beta)
    jsd = generalized_jsd(student, teacher, beta=beta)
    torch.testing.assert_close(made_up, jsd, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradient(made_up, student), gradient(jsd, student), rtol=1e-5, atol=1e-7)


def test_each_is_the_others_mirror():
    student, teacher = logits()
    torch.testing.assert_close(
        skew_kl(student, teacher, alpha=0.3), skew_reverse_kl(teacher, student, alpha=0.3), rtol=0, atol=0
    )


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_identical_sides_have_no_loss_and_no_gradient(which, alpha):
    student, _ = logits(vocab_size=1000, scale=5.0)
    loss = which(student.requires_grad_(), student.detach().clone(), alpha=alpha)
    assert loss.max() < 1e-6
    assert gradient(loss, student).abs().max() < 1e-6


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_logits_of_ten_thousand_keep_value_and_gradient_finite_and_right(which, alpha):
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (2, 5, 30), generator=generator) * 2.0 - 1.0
    student, teacher = 1e4 * signs + torch.randn(2, 5, 30, generator=generator)
    loss = which(student.requires_grad_(), teacher, alpha=alpha)
    expected = by_definition(which, student, teacher, alpha)
    finite = np.isfinite(expected)  # at alpha = 0 the loop meets log 0
    np.testing.assert_allclose(loss.detach().numpy()[finite], expected[finite], rtol=2e-6, atol=1e-7)
    assert loss.isfinite().all()
    assert gradient(loss, student).isfinite().all()


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_common_offset_costs_no_precision(which, alpha):
    student, teacher = (side.mul(16).round().div(16) for side in logits())  # exact with 4096 added to them
    loss = which(student + 4096.0, teacher, alpha=alpha)
    torch.testing.assert_close(loss, which(student, teacher, alpha=alpha), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("alpha", [1e-6, 0.1, 0.5, 0.9])
def test_a_mask_on_either_side_costs_at_most_minus_log_alpha(which, alpha):
    student, teacher = logits()
    student[0, 3] = teacher[1, 4] = -INF
    student[2, ::2], teacher[2, 1::2] = -INF, -INF  # disjoint supports
    loss = which(student.requires_grad_(), teacher, alpha=alpha)
    np.testing.assert_allclose(
        loss.detach().numpy(), by_definition(which, student, teacher, alpha), rtol=1e-6, atol=1e-7
    )
    assert loss[2].item() == pytest.approx(-math.log(alpha), rel=1e-6)
    grad = gradient(loss, student)
    assert grad.isfinite().all()
    assert (grad[student == -INF] == 0).all()
    grad_of_others = gradient_in_float64(which, student[3:], teacher[3:], alpha, 1.0)
    torch.testing.assert_close(grad[3:].double(), grad_of_others, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_ids_masked_on_both_sides_add_nothing(which, alpha):
    student, teacher = logits()
    masked = [torch.cat([side, torch.full((6, 4), -INF)], dim=1) for side in (student, teacher)]
    loss, expected = (
        which(masked[0].requires_grad_(), masked[1], alpha=alpha),
        which(student.requires_grad_(), teacher, alpha=alpha),
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    grad = gradient(loss, masked[0])
    torch.testing.assert_close(grad[:, :-4], gradient(expected, student), rtol=1e-5, atol=1e-9)
    assert (grad[:, -4:] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.tuples(*[st.lists(st.floats(-50, 50, width=32), min_size=n, max_size=n)] * 2)
    ),
    alpha=st.floats(0, 1, exclude_max=True),
)
def test_never_negative_and_never_above_minus_log_alpha(rows, alpha):
    student, teacher = (torch.tensor([row]) for row in rows)
    for which in BOTH:
        loss = which(student, teacher, alpha=alpha).item()
        assert loss >= 0
        assert alpha == 0 or loss <= -math.log(alpha) * (1 + 1e-5) + 1e-7


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_computed_in_float32_and_the_teacher_gets_no_gradient(which, dtype):
    student, teacher = (side.to(dtype).requires_grad_() for side in logits())
    loss = which(student, teacher, alpha=0.2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, which(student.float(), teacher.float(), alpha=0.2))
    loss.sum().backward()
    assert student.grad.dtype == dtype
    assert teacher.grad is None


@pytest.mark.parametrize("which", BOTH)
def test_no_tokens_one_token_one_id(which):
    for shape in ((0, 5), (1, 5), (3, 1)):
        student = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = which(student, torch.zeros(shape), alpha=0.1)
        assert loss.shape == shape[:1]
        assert gradient(loss, student).shape == shape
    assert (loss == 0).all()  # one id: both sides are certain of it
    assert (gradient(which(student, torch.zeros(shape), alpha=0.1), student) == 0).all()


def test_more_rows_than_a_block_are_the_rows_one_by_one_and_inputs_stay(monkeypatch):
    student, teacher = logits(num_tokens=7)
    before = student.clone(), teacher.clone()
    whole = [which(student, teacher, alpha=alpha) for which in BOTH for alpha in (0.0, 0.3)]
    monkeypatch.setattr("rayqd.losses.rows._BLOCK_ELEMENTS", {"cpu": 2 * 60 + 1})
    blocks = [which(student, teacher, alpha=alpha) for which in BOTH for alpha in (0.0, 0.3)]
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=0)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("which", BOTH)
def test_what_cannot_mean_anything_is_refused(which):
    side = torch.zeros(1, 2)
    for alpha in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="alpha"):
            which(side, side, alpha=alpha)
    with pytest.raises(ConfigError, match="temperature"):
        which(side, side, alpha=0.1, temperature=0.0)
    with pytest.raises(ModelError, match="padded"):
        which(side, torch.zeros(1, 3), alpha=0.1)
