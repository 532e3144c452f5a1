"""What travels between the roles. Frozen, and free of torch, so that the pipeline can carry it without knowing it.

Shapes: P prompt tokens, C completion tokens, d hidden width, V vocabulary, k ids given at each token.

    Example --plan--> PlannedSequence --rollout or data--> Rollout --teacher--> ScoredRollout --> Batch
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from rayqd.audit import StepAudit

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of the data set, as tokens: everything up to the last answer, and that answer."""

    row: int  # position in its source
    prompt_ids: IntArray  # [P] ends with the generation prompt of the chat template
    completion_ids: IntArray  # [C] ends with the end-of-turn token unless it was cut; empty where there is no answer
    trained: NDArray[np.bool_] | None = None  # [P + C] of the data's own answers; None: the completion, all of it
    teacher: int = 0  # which of the run's teachers reads it, whoever completes it

    @property
    def has_answer(self) -> bool:
        """Whether the data has something to train on."""
        return bool(len(self.completion_ids)) if self.trained is None else bool(self.trained.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSequence:
    """One of the sequences that a step trains on; a pure function of (seed, step, index)."""

    step: int
    index: int  # 0 .. batch_size - 1
    example: int  # which Example gives the prompt (and, off-policy, the completion)
    on_policy: bool  # True: the student writes the completion
    seed: int  # sampling seed of the completion
    source: int = 0  # which source the example is of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion and all that is known of it. Its tokens are trained on, all of them unless `trained` says which."""

    step: int
    index: int
    on_policy: bool
    prompt_ids: IntArray  # [P]
    completion_ids: IntArray  # [C]
    policy_version: int | None  # the oldest weights that wrote any of it; None when it comes from the data
    top_ids: IntArray | None = None  # [C, k] the student's own likeliest ids, if the teacher is to score those
    is_cut: bool = False  # the student reached a limit before it came to an end
    trained: NDArray[np.bool_] | None = None  # [C] which tokens are trained on; payloads have a row for these alone
    fault: str = ""  # why nobody may be trained on it; "" where nothing is wrong
    example: int = -1  # of the plan; -1: of a row that is held out
    teacher: int = 0  # which of the run's teachers scores it

    @classmethod
    def from_data(cls, example: Example, *, step: int, index: int, number: int = -1) -> Rollout:
        """Make the rollout whose completion is the data's own, from the first token on that is trained on.

        Without an answer it is the prompt, all of it but its first token, as of plain text. `number`: its place in the
        plan.
        """
        prompt_ids, completion_ids, trained = _split_at_trained(example)
        return cls(
            step=step,
            index=index,
            on_policy=False,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids,
            policy_version=None,
            trained=trained,
            example=number,
            teacher=example.teacher,
        )

    @property
    def summary(self) -> RolloutSummary:
        """What the pipeline must know of it."""
        return RolloutSummary(
            step=self.step,
            index=self.index,
            num_tokens=self.num_tokens,
            num_loss_tokens=self.num_loss_tokens,
            policy_version=self.policy_version,
            is_cut=self.is_cut,
            fault=self.fault,
            example=self.example,
            teacher=self.teacher,
            tokens=self.digest,
        )

    @property
    def digest(self) -> str:
        """Return the digest of its tokens, and of which of them are trained on: 64 bits of XXH3, in hexadecimal."""
        hasher = xxhash.xxh3_64(len(self.prompt_ids).to_bytes(8, "little"))
        hasher.update(np.ascontiguousarray(self.prompt_ids).tobytes())
        hasher.update(np.ascontiguousarray(self.completion_ids).tobytes())
        if self.trained is not None:
            hasher.update(np.ascontiguousarray(self.trained).tobytes())
        return hasher.hexdigest()

    @property
    def target_ids(self) -> IntArray:
        """The completion tokens that are trained on: [C] unless `trained` leaves some out."""
        return self.completion_ids if self.trained is None else self.completion_ids[self.trained]

    @property
    def num_loss_tokens(self) -> int:
        """Completion tokens that are trained on: C unless `trained` leaves some out."""
        return len(self.completion_ids) if self.trained is None else int(self.trained.sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that a model reads: P + C."""
        return len(self.prompt_ids) + len(self.completion_ids)


def _split_at_trained(example: Example) -> tuple[IntArray, IntArray, NDArray[np.bool_] | None]:
    """Return prompt and completion, [P] and [C], and which tokens of the completion are trained on, [C]."""
    if not example.has_answer:
        return example.prompt_ids[:1], example.prompt_ids[1:], None
    if example.trained is None:
        return example.prompt_ids, example.completion_ids, None
    ids = np.concatenate([example.prompt_ids, example.completion_ids])
    places = np.flatnonzero(example.trained)
    first, last = max(int(places[0]), 1), int(places[-1]) + 1  # nothing predicts the first token
    return ids[:first], ids[first:last], example.trained[first:last]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSummary:
    """The little of a rollout that travels everywhere, while its tokens go only to who reads them."""

    step: int
    index: int
    num_tokens: int
    num_loss_tokens: int
    policy_version: int | None
    is_cut: bool = False  # see Rollout
    fault: str = ""
    example: int = -1
    teacher: int = 0
    tokens: str = ""  # their digest, by who made them


@dataclass(frozen=True, slots=True, kw_only=True)
class WireTensor:
    """A tensor as bytes with a dtype that numpy may not have (bfloat16); zero-copy in the object store."""

    dtype: str  # torch's name, without "torch."
    bits: NDArray[Any]  # same shape; what numpy lacks travels as integers


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProbe:
    """What an engine predicts with weights that it was just given, to be held against the learner's own prediction."""

    policy_version: int  # of the weights
    prompt_ids: IntArray  # [P]
    completion_ids: IntArray  # [C] what it wrote, always the likeliest
    top_ids: IntArray  # [C, k] the ids that it found likeliest at each of them
    logprobs: NDArray[np.float32]  # [C, k] of those, in nats, over the whole vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPayload:
    """What a teacher sends of one completion.

    Every field of a subclass is an array or a WireTensor that has a row for each completion token, [C, ...].
    """

    def arrays(self) -> dict[str, WireTensor | NDArray[Any]]:
        """Return every field by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def num_bytes(self) -> int:
        """Bytes of all its arrays, which are what travels."""
        return sum(a.bits.nbytes if isinstance(a, WireTensor) else a.nbytes for a in self.arrays().values())


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenPayload(TeacherPayload):
    """The states from which the teacher's next-token distributions follow exactly: 2·d bytes a token in 16 bits."""

    hidden: WireTensor  # [C, d] last hidden state after the final norm, at the positions that predict completion_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsPayload(TeacherPayload):
    """The teacher's logits over the whole vocabulary: 2·V bytes a token."""

    logits: WireTensor  # [C, V] float16, less the largest of each row


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKPayload(TeacherPayload):
    """The teacher's log-probabilities of k ids at each token, over its whole vocabulary: 8·k bytes a token."""

    ids: IntArray  # [C, k]
    logprobs: NDArray[np.float32]  # [C, k] nats, at distill.temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPayload(TeacherPayload):
    """The teacher's log-probability of each completion token: 4 bytes a token."""

    logprobs: NDArray[np.float32]  # [C] nats, at distill.temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRollout:
    """One training sequence, complete."""

    rollout: Rollout
    payload: TeacherPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One learner worker's share of a step, and what it must know of the whole."""

    share: list[ScoredRollout]
    num_loss_tokens: int  # over all workers
    num_tokens: int  # over all workers, prompts included
    num_on_policy: int  # sequences, over all workers
    policy_version: int | None  # the oldest weights that wrote any of it; None when all of it comes from the data
    num_written_tokens: int = 0  # completion tokens of the on-policy sequences, over all workers
    num_cut: int = 0  # on-policy sequences that reached a limit before they ended, over all workers
    audit: StepAudit | None = None  # who made what, over all workers
    probes: tuple[EngineProbe, ...] = ()  # of the engines that were given their first weights for this step
    max_staleness: int | None = None  # that rollout.max_staleness=auto has come to; None before, and of a number
