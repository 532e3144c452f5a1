"""`rayqd bench teacher`: every form in which a teacher can answer: its bytes, its speed, and what it gets wrong.

The student is the model rounded to nearest; both read the same held-out completions. Each form's loss and gradient are
put beside the exact divergence over the whole vocabulary, which hidden states give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayqd.bench.timing import Timing, measure
from rayqd.config import Config
from rayqd.config.sections import TeacherConfig
from rayqd.data import load_heldout
from rayqd.learner.objective import Objective
from rayqd.model.load import context_length, device, load_model, load_tokenizer, output_head
from rayqd.model.source import student_directory, teacher_directory
from rayqd.model.states import completion_states
from rayqd.model.student import Student
from rayqd.teacher.forward import Teacher
from rayqd.teacher.payloads import make_answer
from rayqd.types import Rollout, ScoredRollout

TOP_K = (1, 8, 32, 64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """One form of answer on the same tokens. `loss` and `cosine` by beta: mean loss in nats a token, and the cosine of
    the gradient of the student's hidden states to the exact one."""

    arm: str
    timing: Timing
    num_tokens: int  # read, prompts included
    bytes_per_token: float  # of completion
    loss: dict[float, float]
    cosine: dict[float, float]


def bench_teacher(config: Config, *, num_tokens: int, betas: Sequence[float], repeats: int) -> Iterator[Answering]:
    """Hidden states first. Reads held-out rows until they have `num_tokens` tokens."""
    directory = student_directory(config)
    rollouts = _rollouts(config, num_tokens)
    student = Student.load(directory, config)
    with torch.no_grad():
        hidden = completion_states(student.model, rollouts)
    student_head = student.head.detach().clone()
    del student
    model = load_model(teacher_directory(config), config.model.dtype)
    head = output_head(model)
    vocab_size = min(len(student_head), len(head))
    own = _own_ids(hidden, student_head[:vocab_size], max(k for k in TOP_K if k <= vocab_size), rollouts)
    exact: dict[float, tuple[float, Tensor]] = {}
    for arm, settings, read in _forms(vocab_size, rollouts, own):
        answer = make_answer(settings, head[:vocab_size], config.distill.temperature)
        teacher = Teacher(model, config.teacher.max_batch_tokens, answer)
        timing = measure(lambda teacher=teacher, read=read: teacher.score(read), device(), repeats=repeats)
        payloads = [payload for payload in teacher.score(read) if payload is not None]
        batch = [ScoredRollout(rollout=r, payload=p) for r, p in zip(read, payloads, strict=True)]
        found = {} if settings.payload == "sampled" else _losses(config, hidden, student_head, head, batch, betas)
        exact = exact or found
        yield Answering(
            arm=arm,
            timing=timing,
            num_tokens=sum(r.num_tokens for r in read),
            bytes_per_token=sum(payload.num_bytes for payload in payloads) / sum(r.num_loss_tokens for r in read),
            loss={beta: loss for beta, (loss, _) in found.items()},
            cosine={beta: _cosine(gradient, exact[beta][1]) for beta, (_, gradient) in found.items()},
        )


def _forms(
    vocab_size: int, rollouts: list[Rollout], own: list[Rollout]
) -> Iterator[tuple[str, TeacherConfig, list[Rollout]]]:
    """A name, the settings, and what is read: the same rollouts, for the student's ids with them."""
    yield "hidden", TeacherConfig(payload="hidden"), rollouts
    yield "logits", TeacherConfig(payload="logits"), rollouts
    for k in TOP_K:
        if k <= vocab_size:
            yield f"topk {k}", TeacherConfig(payload="topk", top_k=k), rollouts
    for k in TOP_K:
        if k <= vocab_size:
            mine = [replace(each, top_ids=None if each.top_ids is None else each.top_ids[:, :k]) for each in own]
            yield f"student's {k}", TeacherConfig(payload="topk", top_k=k, top_k_of="student"), mine
    yield "sampled", TeacherConfig(payload="sampled"), rollouts


def _rollouts(config: Config, num_tokens: int) -> list[Rollout]:
    directory = student_directory(config)
    heldout = load_heldout(load_tokenizer(directory), config, context_length(directory))
    rollouts: list[Rollout] = []
    for example in heldout.examples:
        rollouts.append(Rollout.from_data(example, step=0, index=len(rollouts)))
        if sum(r.num_tokens for r in rollouts) >= num_tokens:
            break
    return rollouts


def _own_ids(hidden: Tensor, head: Tensor, k: int, rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts with the student's k likeliest ids at each token."""
    found: list[Rollout] = []
    for own, rollout in zip(hidden.split([r.num_loss_tokens for r in rollouts]), rollouts, strict=True):
        ids = (own @ head.t()).float().topk(k, dim=-1).indices
        found.append(replace(rollout, top_ids=ids.int().cpu().numpy()))
    return found


def _losses(
    config: Config,
    hidden: Tensor,
    head: Tensor,
    teacher_head: Tensor,
    batch: list[ScoredRollout],
    betas: Sequence[float],
) -> dict[float, tuple[float, Tensor]]:
    """Mean loss and gradient [T, d] at each beta."""
    found: dict[float, tuple[float, Tensor]] = {}
    for beta in betas:
        distill = config.distill.model_copy(update={"beta": beta, "normalize": False})
        leaf = hidden.detach().clone().requires_grad_()
        loss = Objective(distill, head, teacher_head)(leaf, batch).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        found[beta] = loss.item(), gradient.float()
    return found


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
