"""Sampled estimates of the reverse KL: their expectation over the whole vocabulary, not over samples, is exact."""

import math

import pytest
import torch

from rayqd.errors import ModelError
from rayqd.losses import sampled_reverse_kl, sampled_reverse_kl_k3

VOCAB = 7
INF = math.inf


def logits(seed=0):
    """Student, teacher and sampler of one token, float64."""
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(VOCAB, generator=generator, dtype=torch.float64) for _ in range(3)]


def full_reverse_kl(student, teacher):
    """Value and gradient with respect to the logits, by autograd in float64."""
    student = student.clone().requires_grad_()
    p, q = student.softmax(0), teacher.softmax(0)
    loss = (p * (p / q).log()).sum()
    return loss.item(), torch.autograd.grad(loss, student)[0]


def expectation(estimator, student, teacher, sampler=None):
    """Value and gradient of sum_x s(x) estimate(x): every id of the vocabulary once, weighted by its probability."""
    student = student.clone().requires_grad_()
    p, q = student.log_softmax(0), teacher.log_softmax(0)
    s = p.detach() if sampler is None else sampler.log_softmax(0)
    estimate = estimator(p, q) if sampler is None else estimator(p, q, s)
    value = (s.exp() * estimate.double()).sum()
    return value.item(), torch.autograd.grad(value, student)[0] if value.requires_grad else None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("off_policy", [False, True])
def test_value_and_gradient_are_unbiased(seed, off_policy):
    student, teacher, sampler = logits(seed)
    value, grad = expectation(sampled_reverse_kl, student, teacher, sampler if off_policy else None)
    expected_value, expected_grad = full_reverse_kl(student, teacher)
    assert value == pytest.approx(expected_value, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("off_policy", [False, True])
def test_k3_is_unbiased_never_negative_and_has_the_gradient_of_the_forward_kl(seed, off_policy):
    student, teacher, sampler = logits(seed)
    value, grad = expectation(sampled_reverse_kl_k3, student, teacher, sampler if off_policy else None)
    assert value == pytest.approx(full_reverse_kl(student, teacher)[0], rel=1e-6, abs=1e-6)
    torch.testing.assert_close(grad, student.softmax(0) - teacher.softmax(0), rtol=1e-5, atol=1e-6)
    assert (sampled_reverse_kl_k3(student.log_softmax(0), teacher.log_softmax(0)) >= 0).all()


def test_without_sampling_log_probabilities_stale_samples_bias_the_gradient():
    student, teacher, sampler = logits()
    weights = sampler.softmax(0)
    x = student.clone().requires_grad_()
    loss = (weights * sampled_reverse_kl(x.log_softmax(0), teacher.log_softmax(0)).double()).sum()
    _, expected = full_reverse_kl(student, teacher)
    assert (torch.autograd.grad(loss, x)[0] - expected).abs().max() > 0.1


def test_on_policy_sampling_log_probabilities_change_nothing():
    p, q = (x.log_softmax(0) for x in logits()[:2])
    assert torch.equal(sampled_reverse_kl(p, q, p), sampled_reverse_kl(p, q))
    assert torch.equal(sampled_reverse_kl_k3(p, q, p), sampled_reverse_kl_k3(p, q))


def test_what_the_docstring_says_of_differentiating_k1_k2_and_k3():
    student, teacher, _ = logits()
    _, reverse = full_reverse_kl(student, teacher)
    forward = student.softmax(0) - teacher.softmax(0)  # the gradient of KL(teacher || student)
    for estimator, expected in (
        (lambda p, q: p - q, torch.zeros(VOCAB, dtype=torch.float64)),
        (lambda p, q: (p - q) ** 2 / 2, reverse),
        (lambda p, q: (q - p).exp() - 1 - (q - p), forward),
    ):
        torch.testing.assert_close(expectation(estimator, student, teacher)[1], expected, rtol=1e-9, atol=1e-12)


def test_k3_varies_less_than_k1_where_the_sides_are_close():
    student, noise, _ = logits()
    p, q = student.log_softmax(0), (student + 0.1 * noise).log_softmax(0)
    variances = []
    for estimate in (sampled_reverse_kl(p, q).double(), sampled_reverse_kl_k3(p, q).double()):
        mean = (p.exp() * estimate).sum()
        variances.append((p.exp() * (estimate - mean) ** 2).sum())
    assert variances[1] < 0.1 * variances[0]


def test_the_numbers_of_one_token():
    # p = 1/2, q = 1/8, s = 1/4: w = 2, log p - log q = log 4; q / p = 1/4, k3 = 1/4 - 1 + log 4.
    p = torch.tensor([0.5]).log().requires_grad_()
    q, s = torch.tensor([0.125]).log(), torch.tensor([0.25]).log()
    loss = sampled_reverse_kl(p, q, s)
    assert loss.item() == pytest.approx(2 * math.log(4), rel=1e-6)
    assert torch.autograd.grad(3 * loss.sum(), p)[0].item() == pytest.approx(6 * math.log(4), rel=1e-6)
    assert sampled_reverse_kl_k3(p, q).item() == pytest.approx(math.log(4) - 0.75, rel=1e-6)
    # d k3 / d log p = 1 - q / p = 3/4, and w = 2 times that
    assert torch.autograd.grad(sampled_reverse_kl_k3(p, q).sum(), p)[0].item() == pytest.approx(0.75, rel=1e-6)
    assert torch.autograd.grad(sampled_reverse_kl_k3(p, q, s).sum(), p)[0].item() == pytest.approx(1.5, rel=1e-6)
    assert sampled_reverse_kl_k3(p, q, s).item() == pytest.approx(2 * math.log(4) - 1.5, rel=1e-6)


def test_only_the_student_gets_a_gradient_and_in_its_own_dtype():
    p, q, s = (torch.tensor([-1.0, -2.0], dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    loss = sampled_reverse_kl(p, q, s)
    assert loss.dtype == torch.float32
    assert sampled_reverse_kl_k3(p, q, s).dtype == torch.float32
    loss.sum().backward()
    assert p.grad.dtype == torch.bfloat16
    assert q.grad is None
    assert s.grad is None


def test_log_probabilities_of_minus_ten_thousand_stay_finite():
    values = torch.tensor([0.0, -1e4])
    p, q, s = (x.flatten() for x in torch.meshgrid(values, values, values, indexing="ij"))
    p.requires_grad_()
    for sampling in (None, s):
        loss = sampled_reverse_kl(p, q, sampling)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), p)[0].isfinite().all()
        k3 = sampled_reverse_kl_k3(p, q, sampling)
        assert k3.isfinite().all()
        assert torch.autograd.grad(k3.sum(), p)[0].isfinite().all()
    assert sampled_reverse_kl(p, q)[2].item() == 1e4


def test_a_token_the_student_cannot_sample_counts_nothing_and_one_the_teacher_cannot_is_infinite():
    p = torch.tensor([-INF, -INF, -1.0, -1e4], requires_grad=True)
    q = torch.tensor([-1.0, -INF, -INF, -INF])
    s = torch.tensor([-1.0, -INF, -1.0, -1.0])  # the last: w = 0
    for sampling, expected in ((None, [0, 0, INF, INF]), (s, [0, 0, INF, 0])):
        loss = sampled_reverse_kl(p, q, sampling)
        assert loss.tolist() == expected
        k3 = sampled_reverse_kl_k3(p, q, sampling)
        assert k3.tolist() == expected
        # Of an id that the teacher cannot have, 1 - q / p is 1; of one that counts nothing, 0.
        assert torch.autograd.grad(k3.sum(), p)[0].tolist() == [float(value == INF) for value in expected]
        assert torch.autograd.grad(loss.sum(), p)[0].tolist() == expected


def test_no_tokens_give_no_losses():
    empty = torch.zeros(0, requires_grad=True)
    assert sampled_reverse_kl(empty, empty, empty).shape == (0,)
    assert sampled_reverse_kl_k3(empty, empty).shape == (0,)
    assert torch.autograd.grad(sampled_reverse_kl(empty, empty).sum(), empty)[0].shape == (0,)


def test_unequal_shapes_are_refused():
    one, two = torch.zeros(1), torch.zeros(2)
    for function in (sampled_reverse_kl, sampled_reverse_kl_k3):
        with pytest.raises(ModelError, match=r"\[\[2\], \[1\]\]"):
            function(two, one)
        with pytest.raises(ModelError, match="sampling_logprobs"):
            function(two, two, one)
        with pytest.raises(ModelError, match="tokens"):
            function(two[None], two[None])
