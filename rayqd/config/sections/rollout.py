"""Rollouts: how completions are sampled, and how far ahead of the learner."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayqd.config.sections.base import Section
from rayqd.config.sections.markers import ChangesCompletions, SameResult

MOST_STALENESS = 2  # of auto: rollouts, teacher and learner are at three steps then, and none waits for another


class RolloutConfig(Section):
    """How the student samples completions, and the workers that do."""

    num_workers: Annotated[int, SameResult()] = Field(default=1, ge=1)
    """Rollout workers; none are started when distill.lmbda is 0."""
    min_new_tokens: Annotated[int, ChangesCompletions()] = Field(default=0, ge=0)
    """No end of text before this many tokens. Above 0 a short answer runs on as text that the model would not write."""
    max_new_tokens: Annotated[int, ChangesCompletions()] = Field(default=128, ge=1)
    """Completions are cut after this many tokens."""
    temperature: Annotated[float, ChangesCompletions()] = Field(default=1.0, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: Annotated[Annotated[float, Field(gt=0, le=1)] | Literal["model"], ChangesCompletions()] = 1.0
    """Sample from the likeliest tokens that have this probability together; 1 from all. model: what the model's
    generation_config.json says, as in the three settings below."""
    top_k: Annotated[Annotated[int, Field(ge=0)] | Literal["model"], ChangesCompletions()] = 0
    """Sample from so many of the likeliest tokens; 0 from all."""
    min_p: Annotated[Annotated[float, Field(ge=0, le=1)] | Literal["model"], ChangesCompletions()] = 0.0
    """Sample from tokens at least this share as likely as the likeliest one; 0 from all."""
    repetition_penalty: Annotated[Annotated[float, Field(gt=0)] | Literal["model"], ChangesCompletions()] = 1.0
    """Above 1 tokens that the text already has become less likely; 1 leaves them."""
    stop: Annotated[list[str], ChangesCompletions()] = Field(default=[])
    """Texts that end a completion, beside the ends of turn of chat template, tokenizer and generation_config.json,
    which always do."""
    max_staleness: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Versions a rollout may lag behind the learner; 0 is strictly on-policy. auto: 0 for the first steps, and then the
    least at which the slowest role is always at work, by what the roles took; at most 2, no more than Ray's object
    store has room for, and 0 where roles share GPUs or cores. The run says what it chose, and a resumed one keeps it.
    """
    max_concurrent: Annotated[int, SameResult()] = Field(default=64, ge=1)
    """Completions that one worker samples at a time."""
    tensor_parallel: Annotated[int, SameResult()] = Field(default=1, ge=1)
    """GPUs of one node among which each worker's engine divides every layer, for a model that is too large for one or
    too slow on it. They are that worker's alone. Without GPUs, processes."""
    gpu_memory_utilization: Annotated[float | None, SameResult()] = Field(default=None, gt=0, le=1)
    """Share of the GPU that the engine takes; none: what its weights and the keys and values of max_concurrent
    sequences need, of what the other roles on the GPU leave."""
    engine: Annotated[Literal["auto", "eager", "graphs", "compile"], SameResult()] = "auto"
    """What vLLM prepares on a GPU before its first token. eager: nothing; graphs: CUDA graphs of the batch sizes that
    can occur; compile: torch.compile as well; auto: what takes the least time over all tokens of the run."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> RolloutConfig:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}")
        return self

    @field_validator("stop")
    @classmethod
    def _stop_is_text(cls, stop: list[str]) -> list[str]:
        if not all(stop):
            raise ValueError("an empty text would end every completion at once: leave it out")
        return stop

    @property
    def first_staleness(self) -> int:
        """The versions that a rollout may lag behind in the first steps."""
        return 0 if self.max_staleness == "auto" else self.max_staleness

    @property
    def most_staleness(self) -> int:
        """The versions that a rollout may ever lag behind."""
        return MOST_STALENESS if self.max_staleness == "auto" else self.max_staleness

    @property
    def is_truncated(self) -> bool:
        """Whether some tokens are never sampled, or others less often than the model would."""
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        return any(getattr(self, name) != value for name, value in neutral.items())
