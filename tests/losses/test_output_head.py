"""Losses of heads that scale, shift and cap their logits, against autograd of the formula in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from rayqd.losses import (
    chunked_generalized_jsd,
    chunked_loss,
    chunked_rowwise,
    chunked_token_nll,
    skew_kl,
    topk_generalized_jsd,
    total_variation,
)
from rayqd.losses.output_head import OutputHead, logits_of, write_logits

_T, _V, _D = 13, 37, 8
_HEADS = {
    "scale": {"scale": 0.125},
    "cap": {"cap": 3.0},
    "bias": {"bias": True},
    "all": {"scale": 1.7, "cap": 2.0, "bias": True},
}


def _head(seed: int, scale: float = 1.0, cap: float | None = None, bias: bool = False) -> OutputHead:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(_V, generator=generator) if bias else None
    return OutputHead(weight=torch.randn(_V, _D, generator=generator), bias=shift, scale=scale, cap=cap)


def _states(seed: int) -> Tensor:
    return torch.randn(_T, _D, generator=torch.Generator().manual_seed(seed))


def _formula(hidden: Tensor, head: OutputHead) -> Tensor:
    """Write the logits out, in float64."""
    x = head.scale * (hidden.double() @ head.weight.double().T)
    if head.bias is not None:
        x = x + head.bias.double()
    return x if head.cap is None else head.cap * torch.tanh(x / head.cap)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def _jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Write GKD's divergence out: the KLs to the mixture, and its two limits."""
    p, q = student.softmax(-1), teacher.softmax(-1)
    if beta == 0.0:
        return _kl(q, p)
    if beta == 1.0:
        return _kl(p, q)
    mixture = beta * q + (1 - beta) * p
    return beta * _kl(q, mixture) + (1 - beta) * _kl(p, mixture)


def _check(loss: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor]) -> None:
    """Compare values and gradients; the tokens have different weights, which a gradient must carry."""
    weights = torch.linspace(0.5, 2.0, _T)
    ours, exact = _states(0).requires_grad_(), _states(0).double().requires_grad_()
    value, expected = loss(ours), reference(exact)
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("form", _HEADS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_chunked_divergence_is_that_of_the_true_logits(form: str, beta: float, temperature: float) -> None:
    student, teacher, hidden = _head(1, **_HEADS[form]), _head(2, **_HEADS[form]), _states(3)
    chunked = partial(chunked_generalized_jsd, beta=beta, temperature=temperature, chunk_tokens=5)
    _check(
        lambda h: chunked(h, student, hidden, teacher),
        lambda h: _jsd(_formula(h, student) / temperature, _formula(hidden, teacher) / temperature, beta),
    )


def test_sides_may_have_heads_of_different_kinds() -> None:
    student, teacher, hidden = _head(1, cap=2.0), _head(2).weight, _states(3)
    _check(
        lambda h: chunked_generalized_jsd(h, student, hidden, teacher, beta=0.0, chunk_tokens=4),
        lambda h: _jsd(_formula(h, student), hidden.double() @ teacher.double().T, 0.0),
    )


@pytest.mark.parametrize("form", _HEADS)
def test_losses_of_logits_are_those_of_the_true_logits(form: str) -> None:
    student, teacher, hidden = _head(1, **_HEADS[form]), _head(2, **_HEADS[form]), _states(3)

    def variation(h: Tensor) -> Tensor:
        return (_formula(h, student).softmax(-1) - _formula(hidden, teacher).softmax(-1)).abs().sum(-1) / 2

    def skewed(h: Tensor) -> Tensor:
        p, q = _formula(h, student).softmax(-1), _formula(hidden, teacher).softmax(-1)
        return _kl(q, 0.2 * q + 0.8 * p)

    _check(lambda h: chunked_loss(h, student, hidden, teacher, total_variation, chunk_tokens=5), variation)
    loss = partial(skew_kl, alpha=0.2)
    _check(lambda h: chunked_loss(h, student, hidden, teacher, loss, chunk_tokens=5), skewed)


@pytest.mark.parametrize("form", _HEADS)
def test_top_k_losses_are_those_of_the_true_logits(form: str) -> None:
    student, teacher = _head(1, **_HEADS[form]), _head(2, **_HEADS[form])
    logprobs = _formula(_states(3), teacher).log_softmax(-1)
    ids = logprobs.topk(4).indices

    def ours(logits: Tensor, rows: slice) -> Tensor:
        return topk_generalized_jsd(logits, ids[rows], logprobs[rows].gather(1, ids[rows]).float(), beta=0.0)

    def expected(h: Tensor) -> Tensor:
        p, q = _formula(h, student).softmax(-1).gather(1, ids), logprobs.exp().gather(1, ids)
        buckets = (torch.cat([side, 1 - side.sum(-1, keepdim=True)], dim=-1) for side in (q, p))
        return _kl(*buckets)

    _check(lambda h: chunked_rowwise(h, student, ours, chunk_tokens=5), expected)


@pytest.mark.parametrize("form", _HEADS)
def test_the_negative_log_likelihood_is_that_of_the_true_logits(form: str) -> None:
    head, hidden, ids = _head(1, **_HEADS[form]), _states(0), torch.arange(_T)
    expected = -_formula(hidden, head).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    nll = chunked_token_nll(hidden, head, ids, chunk_tokens=5)
    torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_trained_weight_gets_the_gradient_of_the_true_logits() -> None:
    plain = _head(1, scale=1.7, cap=2.0, bias=True)
    head = OutputHead(weight=plain.weight.requires_grad_(), bias=plain.bias, scale=plain.scale, cap=plain.cap)
    teacher, hidden, states = _head(2), _states(3), _states(0).requires_grad_()
    chunked_generalized_jsd(states, head, hidden, teacher, beta=0.4, chunk_tokens=5).sum().backward()
    exact = OutputHead(weight=plain.weight.detach().double().requires_grad_(), bias=plain.bias, scale=1.7, cap=2.0)
    _jsd(_formula(_states(0), exact), _formula(hidden, teacher), 0.4).sum().backward()
    assert head.weight.grad is not None
    assert exact.weight.grad is not None
    torch.testing.assert_close(head.weight.grad.double(), exact.weight.grad, rtol=2e-4, atol=2e-6)


def test_logits_that_are_written_are_those_that_are_returned() -> None:
    head, hidden = _head(1, scale=0.3, cap=2.0, bias=True), _states(0)
    out = torch.empty(_T, _V)
    write_logits(hidden, head, out)
    torch.testing.assert_close(out.double(), _formula(hidden, head), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits_of(hidden, head), out)
    torch.testing.assert_close(logits_of(hidden, head[3:9]), out[:, 3:9])


def test_a_head_that_does_nothing_more_is_the_plain_product_to_the_bit() -> None:
    weight, hidden, teacher = _head(1).weight, _states(0), _states(3)
    plain = chunked_generalized_jsd(hidden, weight, teacher, weight, beta=0.5)
    assert torch.equal(plain, chunked_generalized_jsd(hidden, _head(1), teacher, _head(1), beta=0.5))
