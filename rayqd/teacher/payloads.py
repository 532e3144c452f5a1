"""What a teacher sends of each completion: one class a payload, from hidden states to what travels.

Shapes: C completion tokens, V vocabulary, d width, k ids. Logits are the product of hidden states and output head in
the model's own dtype, as the learner computes them from the states themselves; all that follows is float32.
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.config.sections import TeacherConfig
from rayqd.extensions import is_import_path, load_extension, source_digest
from rayqd.losses.output_head import Head, logits_of
from rayqd.losses.rows import chunk_size, slices
from rayqd.model.wire import to_wire
from rayqd.teacher.cache import TeacherIdentity
from rayqd.types import HiddenPayload, LogitsPayload, Rollout, SampledPayload, TeacherPayload, TopKPayload

_source_digest = functools.cache(source_digest)


class PayloadSpec(ABC):
    """How a payload is computed. A subclass is a frozen dataclass that has a field for everything its numbers depend
    on, beside the teacher and the rollout: texts, numbers, switches, or tuples of them."""

    payload_type: ClassVar[type[TeacherPayload]]

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: TeacherConfig, temperature: float, vocab_size: int) -> Self:
        """Return the spec that the settings describe, which are all that the trials of a sweep with one teacher share.

        `temperature` is that of the loss; `vocab_size` ids are in the output heads of teacher and student.
        """

    @abstractmethod
    def compute(self, states: Tensor, head: Head, rollout: Rollout) -> TeacherPayload | None:
        """Return a `payload_type` of `rollout`, or None where its numbers are inf or nan.

        `states` [C, d] are the teacher's, after its final norm, at the positions that predict `rollout.target_ids`, the
        tokens of the completion that are trained on; `head`
        is its whole output head, of which the first `vocab_size` rows are the student's ids too: a tensor [V, d] where
        the logits are the plain product, as in most models, and an `OutputHead` where they are scaled or capped; of
        either `logits_of(states, head)` are the logits.
        """

    def cache_key(self, teacher: TeacherIdentity) -> str:
        """Return a text that no other teacher, class, source code of that class, or field shares."""
        cls = type(self)
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        identity = {name: value for name, value in asdict(teacher).items() if value != ""}
        return json.dumps([identity, f"{cls.__module__}:{cls.__qualname__}", _source_digest(cls), values])


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenSpec(PayloadSpec):
    """The hidden states themselves, from which every distribution follows at any temperature."""

    payload_type = HiddenPayload

    @classmethod
    def from_settings(cls, settings: TeacherConfig, temperature: float, vocab_size: int) -> Self:
        """Return the one spec there is: the states follow from no setting."""
        del settings, temperature, vocab_size
        return cls()

    def compute(self, states: Tensor, head: Head, rollout: Rollout) -> HiddenPayload | None:
        """Return the states themselves, [C, d], in the model's dtype."""
        del head, rollout
        return HiddenPayload(hidden=to_wire(states)) if bool(states.isfinite().all()) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsSpec(PayloadSpec):
    """Every logit in float16, less the largest of its row."""

    payload_type = LogitsPayload
    vocab_size: int

    @classmethod
    def from_settings(cls, settings: TeacherConfig, temperature: float, vocab_size: int) -> Self:
        """Return the spec for the whole vocabulary; no setting changes its logits."""
        del settings, temperature
        return cls(vocab_size=vocab_size)

    def compute(self, states: Tensor, head: Head, rollout: Rollout) -> LogitsPayload | None:
        """Return all logits, [C, V]."""
        del rollout
        chunks = [(rows - rows.amax(-1, keepdim=True)).half() for rows in _logits(states, head[: self.vocab_size])]
        logits = torch.cat(chunks)
        return None if logits.isnan().any() else LogitsPayload(logits=to_wire(logits))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKSpec(PayloadSpec):
    """Log-probabilities of `k` ids a token: the teacher's likeliest, or those that the student's rollout names."""

    payload_type = TopKPayload
    k: int
    of_student: bool  # where the rollout has the student's ids; the data's completions have none
    temperature: float
    vocab_size: int

    @classmethod
    def from_settings(cls, settings: TeacherConfig, temperature: float, vocab_size: int) -> Self:
        """Read `teacher.top_k` and `teacher.top_k_of`."""
        return cls(
            k=settings.top_k,
            of_student=settings.top_k_of == "student",
            temperature=temperature,
            vocab_size=vocab_size,
        )

    def compute(self, states: Tensor, head: Head, rollout: Rollout) -> TopKPayload | None:
        """Return `k` ids and their log-probabilities, [C, k], normalized over the whole vocabulary."""
        students = _on(rollout.top_ids, states) if self.of_student and rollout.top_ids is not None else None
        chunk_ids: list[Tensor] = []
        chunk_logprobs: list[Tensor] = []
        start = 0
        for rows in _logprobs(states, head[: self.vocab_size], self.temperature):
            stop = start + len(rows)
            ids = rows.topk(self.k, dim=-1).indices if students is None else students[start:stop]
            chunk_ids.append(ids)
            chunk_logprobs.append(rows.gather(1, ids))
            start = stop
        logprobs = torch.cat(chunk_logprobs)
        if logprobs.isnan().any():
            return None
        return TopKPayload(ids=torch.cat(chunk_ids).int().cpu().numpy(), logprobs=logprobs.cpu().numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSpec(PayloadSpec):
    """The log-probability of each token of the completion."""

    payload_type = SampledPayload
    temperature: float
    vocab_size: int

    @classmethod
    def from_settings(cls, settings: TeacherConfig, temperature: float, vocab_size: int) -> Self:
        """Read no setting but the temperature."""
        del settings
        return cls(temperature=temperature, vocab_size=vocab_size)

    def compute(self, states: Tensor, head: Head, rollout: Rollout) -> SampledPayload | None:
        """Return a log-probability a token, [C]."""
        tokens = _on(rollout.target_ids, states)
        chunks: list[Tensor] = []
        start = 0
        for rows in _logprobs(states, head[: self.vocab_size], self.temperature):
            stop = start + len(rows)
            chunks.append(rows.gather(1, tokens[start:stop, None])[:, 0])
            start = stop
        logprobs = torch.cat(chunks)
        return None if logprobs.isnan().any() else SampledPayload(logprobs=logprobs.cpu().numpy())


SPECS: dict[str, type[PayloadSpec]] = {
    "hidden": HiddenSpec,
    "logits": LogitsSpec,
    "topk": TopKSpec,
    "sampled": SampledSpec,
}
"""By the value of `teacher.payload`."""


def payload_spec(config: Config, vocab_size: int) -> PayloadSpec:
    """Return the spec that `teacher.payload` names; `vocab_size` ids are in the output heads of teacher and student.

    Raises ConfigError for one from outside that cannot be imported.
    """
    name = config.teacher.payload
    if is_import_path(name):
        spec_type = cast("type[PayloadSpec]", load_extension(name, "teacher.payload"))
    else:
        spec_type = SPECS[name]
    return spec_type.from_settings(config.teacher, config.distill.temperature, vocab_size)


def _logits(states: Tensor, head: Head) -> Iterator[Tensor]:
    """Yield float32 logits of a few rows at a time."""
    for rows in slices(len(states), chunk_size(None, len(head), 12, head.device)):
        yield logits_of(states[rows], head).float()


def _logprobs(states: Tensor, head: Head, temperature: float) -> Iterator[Tensor]:
    """Yield float32 log-probabilities, in nats, of a few rows at a time."""
    for logits in _logits(states, head):
        yield (logits / temperature).log_softmax(-1)


def _on(ids: np.ndarray, states: Tensor) -> Tensor:
    return torch.as_tensor(ids.astype(np.int64), device=states.device)
