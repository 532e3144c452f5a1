"""What the student is trained on: the divergence from the teacher's payload, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from rayqd.config.sections import DistillConfig
from rayqd.errors import WorkerError
from rayqd.losses import (
    chunked_generalized_jsd,
    chunked_rowwise,
    curvature,
    generalized_jsd,
    sampled_reverse_kl,
    topk_generalized_jsd,
)
from rayqd.model.hidden_states import teacher_states
from rayqd.model.wire import from_wire
from rayqd.types import HiddenPayload, LogitsPayload, SampledPayload, ScoredRollout, TopKPayload

Payload = TypeVar("Payload", HiddenPayload, LogitsPayload, TopKPayload, SampledPayload)


class Objective:
    """Loss of each completion token in nats, divided by its curvature if `distill.normalize`.

    Student and teacher are compared on the ids that both output heads have.
    """

    def __init__(self, distill: DistillConfig, student_head: Tensor, teacher_head: Tensor) -> None:
        """Heads [V, d] and [V, D]; they are views, of which no copy is made."""
        vocab_size = min(len(student_head), len(teacher_head))
        self._student_head, self._teacher_head = student_head[:vocab_size], teacher_head[:vocab_size]
        self._beta, self._temperature = distill.beta, distill.temperature
        self._scale = 1.0 / curvature(distill.beta) if distill.normalize else 1.0

    def __call__(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        """[T] from the student's states [T, d] that predict the completions of `batch`, one after the other."""
        return self._scale * self._per_token(hidden, batch)

    def _per_token(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        match batch[0].payload:
            case HiddenPayload():
                return chunked_generalized_jsd(
                    hidden,
                    self._student_head,
                    teacher_states(batch, hidden.device),
                    self._teacher_head,
                    beta=self._beta,
                    temperature=self._temperature,
                )
            case LogitsPayload():
                return self._of_logits(hidden, batch)
            case TopKPayload():
                return self._of_topk(hidden, batch)
            case SampledPayload():
                return self._of_sampled(hidden, batch)
            case payload:
                raise WorkerError(f"there is no loss on a {type(payload).__name__}")

    def _of_logits(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        teacher = torch.cat([from_wire(payload.logits) for payload in _all(batch, LogitsPayload)]).to(hidden.device)

        def loss(logits: Tensor, rows: slice) -> Tensor:
            return generalized_jsd(logits, teacher[rows], beta=self._beta, temperature=self._temperature)

        return chunked_rowwise(hidden, self._student_head, loss)

    def _of_topk(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        payloads = _all(batch, TopKPayload)
        ids = _joined([payload.ids for payload in payloads], hidden.device)
        logprobs = _joined([payload.logprobs for payload in payloads], hidden.device)

        def loss(logits: Tensor, rows: slice) -> Tensor:
            # The teacher's log-probabilities are at this temperature already.
            return topk_generalized_jsd(logits / self._temperature, ids[rows], logprobs[rows], beta=self._beta)

        return chunked_rowwise(hidden, self._student_head, loss)

    def _of_sampled(self, hidden: Tensor, batch: Sequence[ScoredRollout]) -> Tensor:
        teacher = _joined([payload.logprobs for payload in _all(batch, SampledPayload)], hidden.device)
        tokens = _joined([each.rollout.completion_ids for each in batch], hidden.device).long()

        def loss(logits: Tensor, rows: slice) -> Tensor:
            logprobs = (logits.float() / self._temperature).log_softmax(-1)
            return sampled_reverse_kl(logprobs.gather(1, tokens[rows, None])[:, 0], teacher[rows])

        return chunked_rowwise(hidden, self._student_head, loss)


def _all(batch: Sequence[ScoredRollout], kind: type[Payload]) -> list[Payload]:
    payloads = [each.payload for each in batch]
    if not all(isinstance(payload, kind) for payload in payloads):
        raise WorkerError(f"a batch mixes {kind.__name__} with other payloads of the teacher")
    return cast("list[Payload]", payloads)


def _joined(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)
