"""What the processes of a run measure of one optimizer step, as metrics.jsonl has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Fields that the lines of steps lack which have no value for them: no engine began, the student wrote nothing, or
# the data is of one source, or rollout.max_staleness is a number.
SELDOM_MEASURED = {
    "engine_error",
    "mean_completion_tokens",
    "cut_share",
    "max_staleness",
    "sequences_by_source",
    "payload_bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStep:
    """What the learner measured of one optimizer step."""

    step: int  # optimizer steps done, this one included
    loss: float  # nats a token, over the whole global batch
    grad_norm: float  # before clipping
    lr: float  # that the step used
    num_tokens: int  # of the batch, prompts included
    num_loss_tokens: int
    num_on_policy: int  # sequences that the student wrote
    staleness: int  # versions that the oldest weights behind a rollout lag behind the learner's
    wait_seconds: float  # for the batch
    learner_seconds: float  # of work
    learner_tokens_per_second: float
    engine_error: float | None = None  # None where no engine was given its first weights for the step
    mean_completion_tokens: float | None = None  # of the sequences that the student wrote; None without any
    cut_share: float | None = None  # of those sequences: they reached their limit before they ended
    max_staleness: int | None = None  # that rollout.max_staleness=auto has come to; None before, and of a number


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMetrics:
    """What rollout workers and teachers did for one optimizer step."""

    num_retries: int  # calls repeated because a worker died, since the start
    num_quarantined: int  # sequences that were left out, since the start
    teacher_cache_hits: int  # sequences of the step whose scores were there already
    teacher_cache_misses: int  # sequences of the step that might have been there, and were not
    rollout_seconds: float  # of work, summed over the role's actors
    rollout_tokens_per_second: float | None  # None where the role had nothing to do
    teacher_seconds: float
    teacher_tokens_per_second: float | None
    sequences_by_source: Mapping[str, int] | None = None  # sequences drawn from each, by its name; None of one source
    payload_bytes: int | None = None  # that the teachers sent for the step; None in runs from before it was kept
