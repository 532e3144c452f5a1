"""The total variation distance and its gradient against float64, and the chunked form against that of the logits."""

import math
from functools import partial

import pytest
import torch

from rayqd.errors import ConfigError, ModelError
from rayqd.losses import chunked_loss, generalized_jsd, total_variation


def chunked_total_variation(*inputs, temperature=1.0, chunk_tokens=None):
    return chunked_loss(*inputs, partial(total_variation, temperature=temperature), chunk_tokens=chunk_tokens)


def logits(num_tokens=6, vocab_size=60):
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(num_tokens, vocab_size, generator=generator) for _ in range(2)]


def sides(num_tokens=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(rows, width, generator=generator)).to(dtype)
        for width in (16, 24)
        for rows, scale in ((num_tokens, 1.0), (50, 2 / width**0.5))
    ]


def by_definition(student, teacher, temperature=1.0):
    distances = []
    for rows in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        weights = [[math.exp((x - max(row)) / temperature) for x in row] for row in rows]
        p, q = ([w / math.fsum(side) for w in side] for side in weights)
        distances.append(math.fsum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2)
    return pytest.approx(distances, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_value_is_the_definition_and_at_most_what_pinsker_allows(temperature):
    student, teacher = logits()
    distance = total_variation(student, teacher, temperature=temperature)
    assert distance.dtype == torch.float32
    assert distance.tolist() == by_definition(student, teacher, temperature)
    kl = generalized_jsd(student, teacher, beta=0.0, temperature=temperature)
    assert (distance <= (kl / 2).sqrt()).all()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_gradient_is_that_of_float64_autograd(temperature):
    student, teacher = logits()
    weights = torch.linspace(-1, 2, len(student))
    student.requires_grad_()
    (grad,) = torch.autograd.grad((total_variation(student, teacher, temperature=temperature) * weights).sum(), student)
    exact = student.detach().double().requires_grad_()
    p, q = ((side / temperature).softmax(-1) for side in (exact, teacher.double()))
    (expected,) = torch.autograd.grad(((p - q).abs().sum(-1) / 2 * weights).sum(), exact)
    # Where one id has nearly all of p, sign - sum p sign loses digits.
    assert (grad - expected).abs().max() < 5e-6 * expected.abs().max()


def test_the_sides_that_agree_have_no_gradient():
    student, _ = logits()
    distance = total_variation(student.requires_grad_(), student.detach().clone())
    assert (torch.autograd.grad(distance.sum(), student)[0] == 0).all()


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100, None])
def test_chunks_are_that_of_the_logits(chunk_tokens, monkeypatch):
    monkeypatch.setattr("rayqd.losses.rows._BLOCK_ELEMENTS", {"cpu": 2 * 50 + 1})
    student_hidden, student_head, teacher_hidden, teacher_head = inputs = sides()
    distance = chunked_total_variation(*inputs, temperature=1.3, chunk_tokens=chunk_tokens)
    student, teacher = (
        student_hidden.double() @ student_head.double().T,
        teacher_hidden.double() @ teacher_head.double().T,
    )
    assert distance.tolist() == by_definition(student, teacher, 1.3)
    assert torch.equal(inputs[0], sides()[0])


def test_bfloat16_is_rounded_in_the_products_alone():
    student_hidden, student_head, teacher_hidden, teacher_head = inputs = sides(dtype=torch.bfloat16)
    distance = chunked_total_variation(*inputs, chunk_tokens=3)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(
        distance, total_variation(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T), rtol=1e-2, atol=0
    )


def test_the_ends_are_zero_and_one():
    student, _ = logits()
    assert (total_variation(student, student.clone()) == 0).all()
    # Certain of different ids, at +-1e4 and by a mask: nothing in common, and rounding does not pass 1.
    wrong = torch.tensor([[1e4, -1e4, -1e4]]), torch.tensor([[-1e4, 1e4, 1e4]])
    assert total_variation(*wrong).item() == 1.0
    masked = torch.full((1, 1000), -math.inf)
    masked[0, ::2] = 0.1
    assert total_variation(masked, masked.roll(1, dims=1)).item() == pytest.approx(1.0, rel=1e-6)
    assert total_variation(masked, masked).item() == 0.0
    assert total_variation(masked, masked.roll(1, dims=1)).max() <= 1.0


def test_no_gradient_no_tokens_one_token_one_id():
    student, teacher = logits()
    expected = total_variation(student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.grad(expected.sum(), [student, teacher], allow_unused=True)[1] is None
    with torch.no_grad():
        assert torch.equal(total_variation(student, teacher), expected)
        assert not chunked_total_variation(*(x.requires_grad_() for x in sides())).requires_grad
    assert total_variation(student[:0], teacher[:0]).shape == (0,)
    assert total_variation(student[:1], teacher[:1]).shape == (1,)
    assert total_variation(student[:, :1], teacher[:, :1]).tolist() == [0.0] * 6
    assert chunked_total_variation(*sides(num_tokens=0)).shape == (0,)
    assert chunked_total_variation(*sides(num_tokens=1)).shape == (1,)


def test_what_does_not_fit_is_refused():
    student, teacher = logits()
    hidden, head, teacher_hidden, teacher_head = sides()
    with pytest.raises(ModelError, match="padded"):
        total_variation(student, teacher[:, 1:])
    with pytest.raises(ConfigError, match="temperature"):
        total_variation(student, teacher, temperature=0.0)
    with pytest.raises(ModelError, match="teacher_head"):
        chunked_total_variation(hidden, head, teacher_hidden, head)
    with pytest.raises(ModelError, match="cast one"):
        chunked_total_variation(hidden.bfloat16(), head, teacher_hidden, teacher_head)
    with pytest.raises(ModelError, match="7 tokens and 50 ids"):
        chunked_total_variation(hidden, head, teacher_hidden, teacher_head[1:])
    with pytest.raises(ConfigError, match="chunk_tokens=0"):
        chunked_total_variation(hidden, head, teacher_hidden, teacher_head, chunk_tokens=0)
