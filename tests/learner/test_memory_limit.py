"""Memory that runs out in the middle of a step: the step is done again in smaller parts, and comes to the same.

The error is torch's own class, raised out of a layer's forward or backward pass for calls of too many tokens, when
some of the gradient is there already.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayqd.errors import WorkerError
from rayqd.evals.fidelity import student_fidelity
from rayqd.evals.text import text_perplexity
from rayqd.learner.learner import Learner
from rayqd.learner.memory_fit import lower_to_fit
from rayqd.model.load import load_model, output_head
from rayqd.model.student import Student
from rayqd.model.token_limit import TokenLimit
from rayqd.teacher.forward import Teacher
from rayqd.types import ScoredRollout
from tests.tiny_models import tiny_causal_model, tiny_config

LENGTHS = [(5, 9), (17, 3), (2, 1), (30, 14), (8, 8)]  # 14, 20, 3, 44 and 16 tokens: 97
NUM_LOSS_TOKENS = 35


class _Narrow(torch.autograd.Function):
    """The identity, whose backward pass has no memory for more than `most` tokens."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, most: int) -> Tensor:
        ctx.most = most
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        if gradient.shape[:-1].numel() > ctx.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient, None


def narrow_backward(model: nn.Module, most: int) -> None:
    """Let the first layer's backward pass run out of memory, after the later layers' gradients are there."""
    layer: Any = model.get_submodule("model.layers.0")
    layer.register_forward_hook(lambda _, __, output: _Narrow.apply(output, most))


def narrow_forward(model: nn.Module, most: int) -> list[int]:
    """Let its forward pass run out of memory; returns a list that gets the tokens of each call that did not."""
    calls: list[int] = []

    def check(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[:-1].numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        calls.append(args[0].shape[:-1].numel())

    model.get_submodule("model.layers.0").register_forward_pre_hook(check)
    return calls


@pytest.fixture
def batch(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    rollouts = make_rollouts(*LENGTHS)
    payloads = Teacher(load_model(tiny_model, "float32"), 8192).hidden(rollouts)
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]


@pytest.fixture
def make_learner(tiny_model: Path, tiny_config: Any) -> Callable[..., Learner]:
    def make(**settings: Any) -> Learner:
        config = tiny_config(model={"dtype": "float32"}, learner={"max_grad_norm": 1e9, **settings})
        student = Student.load(tiny_model, config)
        generator = torch.Generator().manual_seed(0)
        for parameter in student.parameters().values():  # adapters begin as zero, and half their gradients with them
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        return Learner(student, student.head, config)

    return make


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.student.parameters().items() if p.grad is not None}


def test_a_step_that_ran_out_of_memory_half_way_comes_to_the_same_gradient(
    make_learner: Callable[..., Learner], batch: list[ScoredRollout]
) -> None:
    whole, narrow = make_learner(), make_learner()
    told: list[str] = []
    narrow.limit.tell = told.append
    narrow_backward(narrow.student.model, 50)
    expected, result = (learner.step(0, batch, NUM_LOSS_TOKENS) for learner in (whole, narrow))
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    own = gradients(narrow)
    assert own
    for name, gradient in gradients(whole).items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-7)
    # 97 tokens are halved: rows of 14, 20 and 3, then 44, then 16; no later step tries more again
    assert narrow.limit.tokens == 48
    (line,) = told
    assert line == (
        "97 tokens did not fit in memory (CUDA out of memory. Tried to allocate 2.00 GiB.): from now on 48 at a time, "
        "without a change of any result (learner.microbatch_tokens)"
    )
    narrow.step(1, batch, NUM_LOSS_TOKENS)
    assert len(told) == 1


def test_a_later_microbatch_that_runs_out_of_memory_leaves_nothing_of_the_earlier_ones_twice(
    make_learner: Callable[..., Learner], batch: list[ScoredRollout]
) -> None:
    """Of 37 and 60 tokens the second one fails, once, in its forward pass; both are done again."""
    whole, other = make_learner(microbatch_tokens=64), make_learner(microbatch_tokens=64)
    told: list[str] = []
    other.limit.tell = told.append
    calls: list[int] = []

    def fail_at_the_second(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append(args[0].shape[:-1].numel())
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    other.student.model.get_submodule("model.layers.1").register_forward_pre_hook(fail_at_the_second)
    expected, result = (learner.step(0, batch, NUM_LOSS_TOKENS) for learner in (whole, other))
    assert calls == [37, 60, 14, 20 + 3, 44, 16]  # the limit is 30 from the second on
    assert len(told) == 1
    assert (result.loss, result.grad_norm) == (
        pytest.approx(expected.loss, rel=1e-5),
        pytest.approx(expected.grad_norm, rel=1e-4),
    )
    own = gradients(other)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_row_that_does_not_fit_alone_ends_with_what_makes_room(
    make_learner: Callable[..., Learner], batch: list[ScoredRollout]
) -> None:
    learner = make_learner()
    learner.limit.tell = lambda _: None
    narrow_backward(learner.student.model, 30)
    with pytest.raises(WorkerError, match=r"a row of 44 tokens did not fit in memory \(CUDA out of memory") as caught:
        learner.step(0, batch, NUM_LOSS_TOKENS)
    for setting in ("learner.gradient_checkpointing", "data.max_length", "learner.microbatch_tokens"):
        assert setting in str(caught.value)


def test_other_errors_pass_as_they_are(make_learner: Callable[..., Learner], batch: list[ScoredRollout]) -> None:
    learner = make_learner()

    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    learner.student.model.get_submodule("model.layers.1").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.step(0, batch, NUM_LOSS_TOKENS)


@pytest.mark.parametrize("model_type", ["llama", "bamba"])
def test_a_teacher_reads_what_does_not_fit_in_parts_with_the_same_states(model_type: str, make_rollouts: Any) -> None:
    """Packed rows, and padded ones, whose calls have 5 · 44 tokens with what is filled up."""
    model = tiny_causal_model(tiny_config(model_type))
    rollouts = make_rollouts(*LENGTHS)
    expected = Teacher(model, 8192).hidden(rollouts)
    calls = narrow_forward(model, 60)
    states = Teacher(model, 8192).hidden(rollouts)
    assert max(calls) <= 60
    assert len(calls) > 1
    for own, other in zip(states, expected, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(own.hidden.bits), torch.from_numpy(other.hidden.bits), rtol=1e-4, atol=1e-5
        )


def test_an_evaluation_in_parts_measures_the_same(tiny_model: Path, batch: list[ScoredRollout]) -> None:
    model = load_model(tiny_model, "float32")
    head: Any = output_head(model)
    expected = student_fidelity(model, head * 1.1, head, batch, 8192)
    narrow_forward(model, 50)
    assert student_fidelity(model, head * 1.1, head, batch, 8192).kl_to_teacher == pytest.approx(expected.kl_to_teacher)


def test_a_text_in_parts_has_the_same_perplexity(tiny_model: Path, make_rollouts: Any) -> None:
    model = load_model(tiny_model, "float32")
    head: Any = output_head(model)
    rows = make_rollouts(*LENGTHS)
    expected = text_perplexity(model, head, rows, 8192)
    calls = narrow_forward(model, 50)
    assert text_perplexity(model, head, rows, 8192) == pytest.approx(expected)
    assert max(calls) <= 50


MIB, GIB = 2**20, 2**30


def limit_of(tokens: int, told: list[str]) -> TokenLimit:
    return TokenLimit(tokens=tokens, setting="learner.microbatch_tokens", advice="", tell=told.append)


def test_the_limit_before_the_first_step_is_what_two_lengths_say_that_fits() -> None:
    """8 MiB a token and 64 MiB once: of 16 GiB, 85 % hold (13926.4 - 64) / 8 = 1732.8 tokens."""
    told: list[str] = []
    limit = limit_of(4096, told)
    lower_to_fit(limit, lambda length: (64 + 8 * length) * MIB, lambda: 16 * GIB)
    assert limit.tokens == 1732
    (line,) = told
    assert "8.0 MiB in training, and 16.0 GiB are free, too little for 4,096 tokens at a time" in line


def test_a_limit_that_fits_stays_and_so_does_one_that_memory_says_nothing_of() -> None:
    told: list[str] = []
    for tokens, peak in (
        (4096, lambda length: length * MIB),  # 4 GiB
        (512, lambda length: length * GIB),  # of two short rows no less can be said than that they do not fit
        (4096, lambda _: None),
        (4096, lambda _: MIB),
    ):
        limit = limit_of(tokens, told)
        lower_to_fit(limit, peak, lambda: 16 * GIB)
        assert limit.tokens == tokens
    assert told == []
