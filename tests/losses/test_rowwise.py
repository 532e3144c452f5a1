"""Any loss of logits in chunks, against the same loss on whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayqd.errors import ConfigError
from rayqd.losses import chunked_generalized_jsd, chunked_rowwise, generalized_jsd, skew_kl

T, V, D = 37, 211, 24


@pytest.fixture
def sides() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(T, D), torch.randn(V, D), torch.randn(T, V) * 3


@pytest.mark.parametrize("chunk_tokens", [1, 7, 37, 1000, None])
def test_loss_and_gradient_are_those_of_whole_logits(
    sides: tuple[Tensor, Tensor, Tensor], chunk_tokens: int | None
) -> None:
    hidden, head, teacher = sides
    weights = torch.rand(T)
    whole = hidden.double().requires_grad_()
    expected = torch.nn.functional.kl_div(
        (whole @ head.double().t()).log_softmax(-1), teacher.double().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    (expected * weights).sum().backward()

    leaf = hidden.clone().requires_grad_()
    actual = chunked_rowwise(
        leaf, head, lambda logits, rows: generalized_jsd(logits, teacher[rows], beta=0.0), chunk_tokens=chunk_tokens
    )
    (actual * weights).sum().backward()
    torch.testing.assert_close(actual.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), whole.grad, rtol=1e-4, atol=1e-6)


def test_it_is_the_exact_divergence_where_both_can_be_had(sides: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, head, _ = sides
    teacher_hidden, teacher_head = torch.randn(T, 5), torch.randn(V, 5)
    teacher = teacher_hidden @ teacher_head.t()
    rowwise = chunked_rowwise(hidden, head, lambda logits, rows: generalized_jsd(logits, teacher[rows], beta=0.3))
    fused = chunked_generalized_jsd(hidden, head, teacher_hidden, teacher_head, beta=0.3)
    torch.testing.assert_close(rowwise, fused, rtol=1e-5, atol=1e-6)


def test_without_a_gradient_nothing_is_kept(sides: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, head, teacher = sides
    calls: list[bool] = []

    def loss(logits: Tensor, rows: slice) -> Tensor:
        calls.append(logits.requires_grad)
        return skew_kl(logits, teacher[rows], alpha=0.1)

    with torch.no_grad():
        assert not chunked_rowwise(hidden.requires_grad_(), head, loss, chunk_tokens=10).requires_grad
    assert calls == [False] * 4


def test_a_chunk_without_tokens_is_refused(sides: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, head, _ = sides
    with pytest.raises(ConfigError, match="chunk_tokens=0"):
        chunked_rowwise(hidden, head, lambda logits, rows: logits.sum(-1), chunk_tokens=0)


def test_no_tokens_have_no_loss(sides: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, head, _ = sides
    empty = hidden[:0].clone().requires_grad_()
    loss = chunked_rowwise(empty, head, lambda logits, rows: logits.sum(-1))
    loss.sum().backward()
    assert loss.shape == (0,)
    assert empty.grad.shape == (0, D)
