"""What the student is trained on: `distill.loss` of the teacher's payload, token by token.

Shapes: T tokens of a microbatch, C of a chunk of them, V vocabulary, d and D hidden widths of student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayqd.config.sections import DistillConfig
from rayqd.errors import WorkerError
from rayqd.losses import chunked_loss, chunked_rowwise, topk_buckets
from rayqd.losses.output_head import Head
from rayqd.losses.registry import Loss, LossOfLogits, load_loss
from rayqd.model.by_teacher import compute_by_teacher
from rayqd.model.hidden_states import teacher_states
from rayqd.model.wire import from_wire
from rayqd.types import (
    HiddenPayload,
    LogitsPayload,
    SampledPayload,
    ScoredRollout,
    TeacherPayload,
    TopKPayload,
    WireTensor,
)


class TokenLoss(Protocol):
    """Loss [C] of the student's logits [C, V] and of a payload's fields [C, ...], which are passed by their names.

    A payload class from outside has one as its static method `token_loss`.
    """

    def __call__(
        self, student_logits: Tensor, completion_ids: Tensor, /, *, beta: float, temperature: float, **fields: Tensor
    ) -> Tensor:
        """Return the loss; row t of it must follow from row t of all arguments alone."""
        ...


class Objective:
    """Loss of each completion token, divided by its curvature if `distill.normalize`.

    Student and teacher are compared on the ids that both output heads have.
    """

    def __init__(self, distill: DistillConfig, student_head: Head, teacher_head: Head) -> None:
        """Heads [V, d] and [V, D]; they are views, of which no copy is made."""
        vocab_size = min(len(student_head), len(teacher_head))
        self._student_head, self._teacher_head = student_head[:vocab_size], teacher_head[:vocab_size]
        self._loss = load_loss(distill.loss)
        self._beta, self._temperature = distill.beta, distill.temperature
        self._scale = 1.0 / self._loss.curvature(distill.beta) if distill.normalize else 1.0

    def __call__(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        """Return [T] from the student's states [T, d] that predict the completions of `batch`, one after the other.

        Raises WorkerError for payloads of several classes, or of one that the loss cannot be computed from.
        """
        kind = type(batch[0].payload)
        if any(type(scored.payload) is not kind for scored in batch):
            raise WorkerError(f"a batch mixes {kind.__name__} with other payloads of the teacher")
        own_loss: TokenLoss | None = getattr(kind, "token_loss", None)
        if own_loss:
            return self._from_fields(hidden, batch, own_loss)
        if kind is HiddenPayload:
            return self._scale * self._from_hidden_states(hidden, teacher_states(batch, hidden.device))
        if kind not in _TOKEN_LOSSES:
            raise WorkerError(f"there is no loss of a {kind.__name__}")
        return self._scale * self._from_fields(hidden, batch, partial(_TOKEN_LOSSES[kind], self._loss))

    def _from_hidden_states(self, hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        sides = hidden, self._student_head, teacher_hidden, self._teacher_head
        if self._loss.of_hidden_states:
            return self._loss.of_hidden_states(*sides, beta=self._beta, temperature=self._temperature)
        return chunked_loss(*sides, partial(_of_logits(self._loss), beta=self._beta, temperature=self._temperature))

    def _from_fields(self, hidden: Tensor, batch: Sequence[ScoredRollout], token_loss: TokenLoss) -> Tensor:
        tensors = _concatenate_fields([scored.payload for scored in batch], hidden.device)
        completion_ids = _concatenate([scored.rollout.target_ids for scored in batch]).to(hidden.device).long()

        def loss_of_rows(logits: Tensor, rows: slice) -> Tensor:
            chunk = {name: tensor[rows] for name, tensor in tensors.items()}
            return token_loss(logits, completion_ids[rows], beta=self._beta, temperature=self._temperature, **chunk)

        return chunked_rowwise(hidden, self._student_head, loss_of_rows)


class RoutedObjective:
    """The same of sequences of several teachers: of each the loss from its own."""

    def __init__(self, distill: DistillConfig, student_head: Head, teacher_heads: Sequence[Head]) -> None:
        """Take the teachers' heads by number, whose sizes may differ."""
        self._objectives = [Objective(distill, student_head, head) for head in teacher_heads]

    def __call__(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        """Return [T], and raise, as `Objective` does."""
        return compute_by_teacher(hidden, batch, lambda teacher, own, rows: self._objectives[teacher](own, rows))


def _loss_of_logits(
    loss: Loss, student: Tensor, completion_ids: Tensor, /, *, logits: Tensor, beta: float, temperature: float
) -> Tensor:
    return _of_logits(loss)(student, logits, beta=beta, temperature=temperature)


def _loss_of_topk(
    loss: Loss,
    student: Tensor,
    completion_ids: Tensor,
    /,
    *,
    ids: Tensor,
    logprobs: Tensor,
    beta: float,
    temperature: float,
) -> Tensor:
    # The teacher's log-probabilities are at this temperature already.
    buckets = topk_buckets(student / temperature, ids, logprobs)
    return _of_logits(loss)(*buckets, beta=beta, temperature=1.0)


def _loss_of_sampled(
    loss: Loss, student: Tensor, completion_ids: Tensor, /, *, logprobs: Tensor, beta: float, temperature: float
) -> Tensor:
    if loss.of_logprobs is None:
        raise WorkerError("distill.loss cannot be computed from sampled log-probabilities")
    own = (student.float() / temperature).log_softmax(-1).gather(1, completion_ids[:, None])[:, 0]
    return loss.of_logprobs(own, logprobs)


# By payload; the loss comes first, all else is as in `TokenLoss`.
_TOKEN_LOSSES: Mapping[type[TeacherPayload], Callable[..., Tensor]] = {
    LogitsPayload: _loss_of_logits,
    TopKPayload: _loss_of_topk,
    SampledPayload: _loss_of_sampled,
}


def _of_logits(loss: Loss) -> LossOfLogits:
    if loss.of_logits is None:
        raise WorkerError("distill.loss cannot be computed from the teacher's whole distribution")
    return loss.of_logits


def _concatenate_fields(payloads: Sequence[TeacherPayload], device: torch.device) -> dict[str, Tensor]:
    """Return each field of all payloads as one tensor [T, ...], by name."""
    names = [field.name for field in fields(payloads[0])]
    return {name: _concatenate([getattr(payload, name) for payload in payloads]).to(device) for name in names}


def _concatenate(parts: Sequence[WireTensor | NDArray[np.generic]]) -> Tensor:
    wires = [part for part in parts if isinstance(part, WireTensor)]
    arrays = [part for part in parts if not isinstance(part, WireTensor)]
    # A copy also of a single array: what the object store lends is read-only, which torch warns of.
    return torch.cat([from_wire(wire) for wire in wires]) if wires else torch.from_numpy(np.concatenate(arrays))  # pyright: ignore[reportUnknownMemberType]
