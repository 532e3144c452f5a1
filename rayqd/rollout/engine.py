"""What a rollout worker needs of whatever writes the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayqd.types import IntArray, WireTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRequest:
    """One completion to write."""

    prompt_ids: IntArray  # [P]
    seed: int
    temperature: float  # 0 is greedy
    min_new_tokens: int
    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()  # end it as well as what the engine finds in the model's directory
    stop: tuple[str, ...] = ()  # texts that end it; their tokens are in it
    top_p: float = 1.0  # of the likeliest tokens together; 1 is all
    top_k: int = 0  # likeliest tokens; 0 is all
    min_p: float = 0.0  # of the likeliest token's probability; 0 is all
    repetition_penalty: float = 1.0  # 1 is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine wrote for a request."""

    token_ids: IntArray  # [C] its end-of-turn token included
    is_cut: bool  # it reached its limit, or the model's, before it ended
    top_ids: IntArray | None = None  # [C, k] the ids that the model found likeliest, where they were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A completion, always the likeliest token, and how likely the engine found the likeliest ones."""

    token_ids: IntArray  # [C]
    top_ids: IntArray  # [C, k]
    logprobs: NDArray[np.float32]  # [C, k] nats, over the whole vocabulary


def ignore_progress() -> None:
    """Do nothing: an engine's `on_progress` where nobody listens."""


class Engine(Protocol):
    """Writes text with the newest weights that it was given."""

    description: str  # of what it computes with, in a few words; "" where there is nothing to say
    on_progress: Callable[[], None]  # called whenever tokens were made

    def load_weights(self, tensors: Mapping[str, WireTensor]) -> None:
        """Replace the quantized weights by what the learner published: packed codes and scales, by name."""
        ...

    def predict(self, prompt_ids: IntArray, num_tokens: int, k: int) -> Prediction | None:
        """Write the likeliest `num_tokens` after a prompt, with the k likeliest ids at each; None without a model."""
        ...

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Return the completion of each request."""
        ...

    def generate_ranked(self, requests: Sequence[SamplingRequest], k: int) -> list[Completion]:
        """Return the same completions, each with the k ids that the model found likeliest at its tokens."""
        ...

    def stream(self, requests: Sequence[SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        """Yield the same completions' ids as they are finished, with indices in `requests`; to be read to its end."""
        ...
