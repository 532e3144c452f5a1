"""What a teacher answers: from its hidden states to what travels. Shapes: T tokens, V vocabulary, d width, k ids.

Logits are the product of hidden states and output head in the model's own dtype, as the learner computes them from the
states themselves; all that follows is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rayqd.config.sections import TeacherConfig
from rayqd.losses.rows import chunk_size, slices
from rayqd.model.wire import to_wire
from rayqd.types import HiddenPayload, LogitsPayload, Rollout, SampledPayload, TeacherPayload, TopKPayload

# Scores of each rollout, from the states [sum of C, d] that predict their completions; None where they are not numbers.
Answer = Callable[[Tensor, Sequence[Rollout]], list[TeacherPayload | None]]


def make_answer(settings: TeacherConfig, head: Tensor, temperature: float) -> Answer:
    """The answer that `teacher.payload` names. `head` is the teacher's [V, d], `temperature` divides its logits."""
    match settings.payload:
        case "hidden":
            return hidden_states
        case "logits":
            return _Logits(head)
        case "topk":
            return _TopK(head, settings.top_k, temperature, of_student=settings.top_k_of == "student")
        case "sampled":
            return _Sampled(head, temperature)


def hidden_states(states: Tensor, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
    """The states themselves."""
    return [HiddenPayload(hidden=to_wire(own)) if _finite(own) else None for own in _split(states, rollouts)]


class _Logits:
    def __init__(self, head: Tensor) -> None:
        self._head = head

    def __call__(self, states: Tensor, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        scores: list[TeacherPayload | None] = []
        for own in _split(states, rollouts):
            rows = [(each - each.amax(-1, keepdim=True)).half() for each in _logits(own, self._head)]
            logits = torch.cat(rows)
            scores.append(None if logits.isnan().any() else LogitsPayload(logits=to_wire(logits)))
        return scores


class _TopK:
    def __init__(self, head: Tensor, k: int, temperature: float, *, of_student: bool) -> None:
        self._head, self._k, self._temperature, self._of_student = head, k, temperature, of_student

    def __call__(self, states: Tensor, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        pairs = zip(_split(states, rollouts), rollouts, strict=True)
        return [self._scores(own, rollout.top_ids if self._of_student else None) for own, rollout in pairs]

    def _scores(self, states: Tensor, wanted: np.ndarray | None) -> TopKPayload | None:
        ids: list[Tensor] = []
        logprobs: list[Tensor] = []
        start = 0
        for logits in _logits(states, self._head):
            each = (logits / self._temperature).log_softmax(-1)
            if wanted is None:
                top = each.topk(self._k, dim=-1)
                ids.append(top.indices)
                logprobs.append(top.values)
            else:
                own = torch.from_numpy(wanted[start : start + len(each)].astype(np.int64)).to(each.device)
                ids.append(own)
                logprobs.append(each.gather(1, own))
            start += len(each)
        found = torch.cat(logprobs)
        if found.isnan().any():
            return None
        return TopKPayload(ids=torch.cat(ids).int().cpu().numpy(), logprobs=found.cpu().numpy())


class _Sampled:
    def __init__(self, head: Tensor, temperature: float) -> None:
        self._head, self._temperature = head, temperature

    def __call__(self, states: Tensor, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        pairs = zip(_split(states, rollouts), rollouts, strict=True)
        return [self._scores(own, torch.from_numpy(r.completion_ids.astype(np.int64))) for own, r in pairs]

    def _scores(self, states: Tensor, targets: Tensor) -> SampledPayload | None:
        found: list[Tensor] = []
        start = 0
        for logits in _logits(states, self._head):
            own = targets[start : start + len(logits)].to(logits.device)
            found.append((logits / self._temperature).log_softmax(-1).gather(1, own[:, None])[:, 0])
            start += len(logits)
        logprobs = torch.cat(found)
        return None if logprobs.isnan().any() else SampledPayload(logprobs=logprobs.cpu().numpy())


def _split(states: Tensor, rollouts: Sequence[Rollout]) -> Iterator[Tensor]:
    yield from states.split([rollout.num_loss_tokens for rollout in rollouts])


def _logits(states: Tensor, head: Tensor) -> Iterator[Tensor]:
    """float32 logits of a few rows at a time."""
    for rows in slices(len(states), chunk_size(None, len(head), 12, head.device)):
        yield (states[rows] @ head.t()).float()


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
