"""What a rollout worker needs of whatever writes the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class Engine(Protocol):
    def load_weights(self, tensors: Mapping[str, WireTensor]) -> None:
        """Replace the quantized weights by what the learner published: packed codes and scales, by name."""
        ...

    def generate(self, requests: Sequence[SamplingRequest]) -> list[IntArray]:
        """The completion's token ids for each request, [C], its end-of-turn token included."""
        ...

    def generate_ranked(self, requests: Sequence[SamplingRequest], k: int) -> list[tuple[IntArray, IntArray]]:
        """The same completions, each with the k ids that the model found likeliest at each of its tokens, [C, k]."""
        ...

    def stream(self, requests: Sequence[SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        """The same completions as they are finished, each with its place among `requests`; to be read to its end."""
        ...
