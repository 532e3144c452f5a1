"""An engine without a model, for tests of everything around it: completions are a function of their seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rayqd.rollout.engine import Completion, Prediction, SamplingRequest, ignore_progress
from rayqd.rollout.weights import PackedLoader, WeightLoader
from rayqd.types import IntArray, WireTensor


class FakeEngine:
    """Keeps the weights that it is given, and draws lengths and token ids from each request's seed."""

    def __init__(self, vocab_size: int, weight_loader: WeightLoader | None = None) -> None:
        self.vocab_size = vocab_size
        self.weight_loader = weight_loader or PackedLoader()
        self.description = ""
        self.on_progress: Callable[[], None] = ignore_progress
        self.num_loads = 0
        self.weights: dict[str, Tensor] = {}  # what a real engine would now compute with

    def load_weights(self, tensors: Mapping[str, WireTensor]) -> None:
        """Keep what a real engine would be given."""
        self.num_loads += 1
        self.weights.update(self.weight_loader.convert(tensors, torch.device("cpu")))

    def predict(self, prompt_ids: IntArray, num_tokens: int, k: int) -> Prediction | None:
        """Return None: there is no model to predict with."""
        del prompt_ids, num_tokens, k
        return None

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Return a completion for each request; one that is as long as it may be is called cut."""
        written = [(self._complete(request), request.max_new_tokens) for request in requests]
        return [Completion(token_ids=ids, is_cut=len(ids) == limit) for ids, limit in written]

    def generate_ranked(self, requests: Sequence[SamplingRequest], k: int) -> list[Completion]:
        """Return the same with ids, id + 1, ... id + k - 1 at each token, [C, k]."""
        offsets = np.arange(k, dtype=np.int32)
        return [replace(c, top_ids=(c.token_ids[:, None] + offsets) % self.vocab_size) for c in self.generate(requests)]

    def stream(self, requests: Sequence[SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        """Yield the same one by one, each with its index among `requests`."""
        yield from ([(index, self._complete(request))] for index, request in enumerate(requests))

    def _complete(self, request: SamplingRequest) -> IntArray:
        random = np.random.default_rng(request.seed)
        length = int(random.integers(max(1, request.min_new_tokens), request.max_new_tokens + 1))
        return random.integers(0, self.vocab_size, length, dtype=np.int32)
