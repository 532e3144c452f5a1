"""What every contender of `rayqd bench run` is given: a model, requests as tokens, and the settings of a step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter

Arm = Literal["on-policy", "off-policy"]
ARMS: tuple[Arm, ...] = get_args(Arm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, and the answer that the data has to it."""

    prompt: str  # what the user says
    answer: str
    prompt_ids: tuple[int, ...]  # [P] chat template and generation prompt included
    completion_ids: tuple[int, ...]  # [C] ends with the end-of-turn token

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the conversation, as a row of data has it."""
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The steps of one arm. Each request is used once; on-policy the student writes its completion."""

    arm: Arm
    model: str  # directory of a checkpoint with its tokenizer; student and teacher
    dtype: str  # bfloat16, float16 or float32
    requests: tuple[Request, ...]  # [steps * num_sequences]
    held_out: tuple[Request, ...]  # others, as a run of rayqd cannot do without
    num_sequences: int  # an optimizer step
    new_tokens: int  # of each completion, exactly
    steps: int
    seconds: float  # after which a contender ends early, once it has done two steps
    microbatch_tokens: int  # that go through the model at once, where a contender can choose
    gradient_checkpointing: bool
    group_size: int  # of INT4, where a contender rounds
    rank: int  # of the adapters on all linear layers but the output head
    alpha: float
    lr: float
    beta: float  # of the generalized Jensen-Shannon divergence
    temperature: float
    seed: int

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of the longest prompt."""
        return max(len(request.prompt_ids) for request in self.requests)

    @property
    def length(self) -> int:
        """Return the tokens of the longest prompt and a completion together."""
        return self.prompt_tokens + self.new_tokens

    @property
    def trained_tokens(self) -> int:
        """Return the completion tokens of a step, over which the loss is taken."""
        return self.num_sequences * self.new_tokens

    def microbatch_sequences(self) -> int:
        """Return how many sequences fit `microbatch_tokens`, a divisor of `num_sequences`, at least 1."""
        fitting = min(self.num_sequences, max(1, self.microbatch_tokens // self.length))
        return next(n for n in range(fitting, 0, -1) if self.num_sequences % n == 0)

    def write(self, file: Path) -> None:
        """Write everything to `file`, for a contender's process."""
        file.write_text(json.dumps(asdict(self)))


def read_workload(file: Path) -> Workload:
    """Read back what `write` wrote. Raises ValueError."""
    return _WORKLOAD.validate_json(file.read_bytes())


_WORKLOAD = TypeAdapter(Workload)
