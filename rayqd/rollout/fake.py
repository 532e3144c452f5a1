"""An engine without a model, for tests of everything around it: completions are a function of their seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.weights import Form, Packed
from rayqd.types import IntArray, WireTensor


class FakeEngine:
    def __init__(self, vocab_size: int, form: Form | None = None) -> None:
        self.vocab_size = vocab_size
        self.form = form or Packed()
        self.num_loads = 0
        self.weights: dict[str, Tensor] = {}  # what a real engine would now compute with, in the same form

    def load_weights(self, tensors: Mapping[str, WireTensor]) -> None:
        self.num_loads += 1
        self.weights.update(self.form.tensors(tensors, torch.device("cpu")))

    def generate(self, requests: Sequence[SamplingRequest]) -> list[IntArray]:
        return [self._completion(request) for request in requests]

    def generate_ranked(self, requests: Sequence[SamplingRequest], k: int) -> list[tuple[IntArray, IntArray]]:
        completions = self.generate(requests)
        return [(ids, (ids[:, None] + np.arange(k, dtype=np.int32)) % self.vocab_size) for ids in completions]

    def stream(self, requests: Sequence[SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        yield from ([(place, self._completion(request))] for place, request in enumerate(requests))

    def _completion(self, request: SamplingRequest) -> IntArray:
        random = np.random.default_rng(request.seed)
        length = int(random.integers(max(1, request.min_new_tokens), request.max_new_tokens + 1))
        return random.integers(0, self.vocab_size, length, dtype=np.int32)
