"""`rayqd bench teacher`: every payload of the teacher: its bytes, its speed, and what it gets wrong.

The student is the model rounded to nearest; both read the same held-out completions. Each payload's loss and gradient
are put beside the exact divergence over the whole vocabulary, which hidden states give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayqd.bench.timing import Timing, measure
from rayqd.config import Config
from rayqd.data import load_heldout
from rayqd.learner.objective import Objective
from rayqd.losses.output_head import Head, logits_of
from rayqd.model.hidden_states import completion_states
from rayqd.model.load import context_length, device, load_model, load_tokenizer, output_head
from rayqd.model.source import student_directory, teacher_directory
from rayqd.model.student import Student
from rayqd.teacher.forward import Teacher
from rayqd.teacher.payloads import HiddenSpec, LogitsSpec, PayloadSpec, SampledSpec, TopKSpec
from rayqd.types import Rollout, ScoredRollout

TOP_K = (1, 8, 32, 64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadBenchmark:
    """One payload of the same tokens."""

    arm: str
    timing: Timing
    num_tokens: int  # read, prompts included
    bytes_per_token: float  # of completion
    loss: dict[float, float]  # by beta: mean in nats a token
    cosine: dict[float, float]  # by beta: of the gradient of the student's hidden states to the exact one


def bench_teacher(
    config: Config, *, num_tokens: int, betas: Sequence[float], repeats: int
) -> Iterator[PayloadBenchmark]:
    """Measure each payload, hidden states first. Reads held-out rows until they have `num_tokens` tokens."""
    directory = student_directory(config)
    rollouts = _rollouts(config, num_tokens)
    student = Student.load(directory, config)
    with torch.no_grad():
        hidden = completion_states(student.model, rollouts)
    student_head = student.head.detach()
    del student
    model = load_model(teacher_directory(config), config.model.dtype)
    head = output_head(model)
    vocab_size = min(len(student_head), len(head))
    with_own_ids = _attach_student_ids(
        hidden, student_head[:vocab_size], max(k for k in TOP_K if k <= vocab_size), rollouts
    )
    exact: dict[float, tuple[float, Tensor]] = {}
    for arm, spec, read in _arms(vocab_size, config.distill.temperature, rollouts, with_own_ids):
        teacher = Teacher(model, config.teacher.max_batch_tokens, spec)
        timing = measure(lambda teacher=teacher, read=read: teacher.score(read), device(), repeats=repeats)
        payloads = [payload for payload in teacher.score(read) if payload is not None]
        batch = [ScoredRollout(rollout=r, payload=p) for r, p in zip(read, payloads, strict=True)]
        losses = {} if isinstance(spec, SampledSpec) else _losses(config, hidden, student_head, head, batch, betas)
        exact = exact or losses
        yield PayloadBenchmark(
            arm=arm,
            timing=timing,
            num_tokens=sum(r.num_tokens for r in read),
            bytes_per_token=sum(payload.num_bytes for payload in payloads) / sum(r.num_loss_tokens for r in read),
            loss={beta: loss for beta, (loss, _) in losses.items()},
            cosine={beta: _cosine(gradient, exact[beta][1]) for beta, (_, gradient) in losses.items()},
        )


def _arms(
    vocab_size: int, temperature: float, rollouts: list[Rollout], with_own_ids: list[Rollout]
) -> Iterator[tuple[str, PayloadSpec, list[Rollout]]]:
    """Yield a name, the spec, and what is read: the same rollouts, for the student's ids with them."""
    yield "hidden", HiddenSpec(), rollouts
    yield "logits", LogitsSpec(vocab_size=vocab_size), rollouts
    specs = [
        TopKSpec(k=k, of_student=False, temperature=temperature, vocab_size=vocab_size)
        for k in TOP_K
        if k <= vocab_size
    ]
    for spec in specs:
        yield f"topk {spec.k}", spec, rollouts
    for spec in specs:
        cut = [replace(r, top_ids=None if r.top_ids is None else r.top_ids[:, : spec.k]) for r in with_own_ids]
        yield f"student's {spec.k}", replace(spec, of_student=True), cut
    yield "sampled", SampledSpec(temperature=temperature, vocab_size=vocab_size), rollouts


def _rollouts(config: Config, num_tokens: int) -> list[Rollout]:
    directory = student_directory(config)
    heldout = load_heldout(load_tokenizer(directory), config, context_length(directory))
    rollouts: list[Rollout] = []
    for example in heldout.examples:
        rollouts.append(Rollout.from_data(example, step=0, index=len(rollouts)))
        if sum(r.num_tokens for r in rollouts) >= num_tokens:
            break
    return rollouts


def _attach_student_ids(hidden: Tensor, head: Head, k: int, rollouts: list[Rollout]) -> list[Rollout]:
    """Return the rollouts with the student's k likeliest ids at each token."""
    attached: list[Rollout] = []
    for states, rollout in zip(hidden.split([r.num_loss_tokens for r in rollouts]), rollouts, strict=True):
        ids = logits_of(states, head).float().topk(k, dim=-1).indices
        attached.append(replace(rollout, top_ids=ids.int().cpu().numpy()))
    return attached


def _losses(
    config: Config,
    hidden: Tensor,
    head: Head,
    teacher_head: Head,
    batch: list[ScoredRollout],
    betas: Sequence[float],
) -> dict[float, tuple[float, Tensor]]:
    """Return mean loss in nats a token, and its gradient [T, d], at each beta."""
    losses: dict[float, tuple[float, Tensor]] = {}
    for beta in betas:
        distill = config.distill.model_copy(update={"beta": beta, "normalize": False})
        leaf = hidden.detach().clone().requires_grad_()
        loss = Objective(distill, head, teacher_head)(leaf, batch).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        losses[beta] = loss.item(), gradient.float()
    return losses


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
