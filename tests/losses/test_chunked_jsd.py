"""The chunked form against the unfused one, and against the definition in float64 (conftest.py)."""

import numpy as np
import pytest
import torch

from rayqd.errors import ConfigError, ModelError
from rayqd.losses import chunked_generalized_jsd, generalized_jsd

BETAS = [0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-6, 1.0]
VOCAB, WIDTH, TEACHER_WIDTH = 50, 16, 24


def sides(num_tokens=7, dtype=torch.float32, seed=0):
    """Hidden state and head of student and teacher, of different widths; logits of standard deviation 2."""
    generator = torch.Generator().manual_seed(seed)

    def side(width):
        hidden = torch.randn(num_tokens, width, generator=generator)
        head = torch.randn(VOCAB, width, generator=generator) * 2 / width**0.5
        return hidden.to(dtype), head.to(dtype)

    return *side(WIDTH), *side(TEACHER_WIDTH)


def gradient(loss, wrt):
    return torch.autograd.grad(loss.sum(), wrt)[0]


def unfused(inputs, beta, temperature=1.0):
    student_hidden, student_head, teacher_hidden, teacher_head = inputs
    return generalized_jsd(
        student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, beta=beta, temperature=temperature
    )


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 7, 100, None])
@pytest.mark.parametrize("beta", BETAS)
def test_chunks_are_the_unfused_loss_and_gradient(beta, chunk_tokens):
    inputs, weights = sides(), torch.linspace(-1, 2, 7)
    results = []
    for loss_of in (
        lambda: chunked_generalized_jsd(*inputs, beta=beta, temperature=1.3, chunk_tokens=chunk_tokens),
        lambda: unfused(inputs, beta, temperature=1.3),
    ):
        hidden = inputs[0].requires_grad_()
        loss = loss_of()
        results.append((loss.detach(), gradient(loss * weights, hidden)))
    (loss, grad), (expected_loss, expected_grad) = results
    torch.testing.assert_close(loss, expected_loss, rtol=2e-6, atol=0)
    assert (grad - expected_grad).abs().max() < 2e-6 * expected_grad.abs().max()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("beta", BETAS)
def test_value_is_the_definition(jsd_by_definition, beta, temperature):
    inputs = sides()
    student, teacher = ((hidden.double() @ head.double().T).numpy() for hidden, head in (inputs[:2], inputs[2:]))
    loss = chunked_generalized_jsd(*inputs, beta=beta, temperature=temperature, chunk_tokens=3)
    np.testing.assert_allclose(loss.numpy(), jsd_by_definition(student, teacher, beta, temperature), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("hidden_too", [True, False])
def test_the_student_head_gets_its_gradient_when_it_wants_one(beta, hidden_too):
    weights = torch.linspace(-1, 2, 7)
    grads = []
    for loss_of in (
        lambda x: chunked_generalized_jsd(*x, beta=beta, temperature=1.3, chunk_tokens=3),
        lambda x: unfused(x, beta, 1.3),
    ):
        inputs = sides()
        inputs[0].requires_grad_(hidden_too)
        inputs[1].requires_grad_()
        (loss_of(inputs) * weights).sum().backward()
        grads.append((inputs[0].grad, inputs[1].grad))
    torch.testing.assert_close(grads[0][1], grads[1][1], rtol=1e-5, atol=1e-6)
    if hidden_too:
        torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-5, atol=1e-6)
    else:
        assert grads[0][0] is None


def test_the_teacher_gets_no_gradient():
    inputs = [x.requires_grad_() for x in sides()]
    chunked_generalized_jsd(*inputs, beta=0.5).sum().backward()
    assert inputs[2].grad is None
    assert inputs[3].grad is None


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_without_gradient_the_values_are_the_same_and_no_slope_is_made(beta, monkeypatch):
    inputs = sides()
    expected = chunked_generalized_jsd(inputs[0].clone().requires_grad_(), *inputs[1:], beta=beta).detach()
    monkeypatch.setattr("rayqd.losses.chunked._store", lambda *_: pytest.fail("a slope was made"))
    with torch.no_grad():
        assert torch.equal(chunked_generalized_jsd(inputs[0].requires_grad_(), *inputs[1:], beta=beta), expected)
    assert torch.equal(chunked_generalized_jsd(inputs[0].detach(), *inputs[1:], beta=beta), expected)


def test_one_token():
    inputs = sides(num_tokens=1)
    assert chunked_generalized_jsd(*inputs, beta=0.5).shape == (1,)
    torch.testing.assert_close(chunked_generalized_jsd(*inputs, beta=0.5), unfused(inputs, 0.5), rtol=2e-6, atol=0)


def test_no_tokens_give_no_losses_and_a_head_gradient_of_zero():
    inputs = [x.requires_grad_() for x in sides(num_tokens=0)]
    loss = chunked_generalized_jsd(*inputs, beta=0.5)
    grad_hidden, grad_head = torch.autograd.grad(loss.sum(), inputs[:2])
    assert loss.shape == (0,)
    assert grad_hidden.shape == (0, WIDTH)
    assert (grad_head == 0).all()


@pytest.mark.parametrize("beta", BETAS)
def test_identical_sides_have_no_loss_and_no_gradient(beta):
    hidden, head, *_ = sides()
    hidden.requires_grad_()
    loss = chunked_generalized_jsd(hidden, head, hidden, head, beta=beta)
    assert loss.max() < 1e-6
    assert gradient(loss, hidden).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "ulp"), [(torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)])
def test_sixteen_bits_stay_within_their_rounding(beta, dtype, ulp):
    low = sides(dtype=dtype)
    exact = [x.float() for x in low]
    for inputs in (low, exact):
        inputs[0].requires_grad_()
    loss, expected = chunked_generalized_jsd(*low, beta=beta), chunked_generalized_jsd(*exact, beta=beta)
    assert loss.dtype == torch.float32
    # A logit x is off by at most ulp |x| / 2 here and |x| < 8, on two sides: log p and log q by 4 ulp each, their
    # difference by 16 ulp counting both normalizations, and p and q by that as a relative error.
    assert (loss - expected).abs().max() < 16 * ulp * (1 + expected.max())
    grad, expected_grad = gradient(loss, low[0]), gradient(expected, exact[0])
    assert grad.dtype == dtype
    assert (grad - expected_grad).abs().max() < 16 * ulp * expected_grad.abs().max()


def test_float16_slopes_too_small_for_float16_are_not_lost():
    # p - q is about 1e-8 at each id, below float16's least number, 6e-8; the head makes their sum count.
    vocab = 4096
    hidden, head = torch.zeros(1, 2), torch.ones(vocab, 2)
    head[::2, 0] = -1.0
    teacher_hidden = torch.tensor([[1e-4, 0.0]])
    grads = {}
    for dtype in (torch.float16, torch.float32):
        x = hidden.to(dtype).requires_grad_()
        loss = chunked_generalized_jsd(x, head.to(dtype), teacher_hidden.to(dtype), head.to(dtype), beta=0.0)
        grads[dtype] = gradient(loss, x)[0, 0].item()
    # d KL(q || p) / dh = sum_v (p_v - q_v) head_v = -tanh(1e-4)
    assert grads[torch.float32] == pytest.approx(-1e-4, rel=1e-3)
    assert grads[torch.float16] == pytest.approx(-1e-4, rel=1e-2)


@pytest.mark.parametrize("beta", BETAS)
def test_logits_of_ten_thousand_are_finite(beta):
    hidden = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    head = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    loss = chunked_generalized_jsd(hidden, head, hidden.detach().flip(0), head, beta=beta)
    assert loss.isfinite().all()
    assert gradient(loss, hidden).isfinite().all()


def test_what_does_not_fit_is_refused():
    hidden, head, teacher_hidden, teacher_head = sides()
    with pytest.raises(ModelError, match="cast one"):
        chunked_generalized_jsd(hidden.bfloat16(), head, teacher_hidden, teacher_head, beta=0.5)
    with pytest.raises(ModelError, match="teacher_head"):
        chunked_generalized_jsd(hidden, head, teacher_hidden, head, beta=0.5)
    with pytest.raises(ModelError, match="padded"):
        chunked_generalized_jsd(hidden, head[:-1], teacher_hidden, teacher_head, beta=0.5)
    with pytest.raises(ModelError, match="tokens"):
        chunked_generalized_jsd(hidden[:-1], head, teacher_hidden, teacher_head, beta=0.5)
    with pytest.raises(ConfigError, match="chunk_tokens=0"):
        chunked_generalized_jsd(hidden, head, teacher_hidden, teacher_head, beta=0.5, chunk_tokens=0)
