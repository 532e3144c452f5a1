"""The rollout worker: an engine that always writes with the weights it is told to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from rayqd.config import Config
from rayqd.metrics.fidelity import TaskResults
from rayqd.pipeline import Ref, Weights
from rayqd.rollout.completions import write_checked
from rayqd.rollout.engine import Completion, Engine, SamplingRequest
from rayqd.rollout.sampling import SamplingRules, sampling_request
from rayqd.rollout.tasks import RunTasks
from rayqd.spans import span
from rayqd.stall import NoWatch, StallWatch, Watch
from rayqd.types import EngineProbe, Example, IntArray, PlannedSequence, Rollout, WireTensor

_PROBE_PROMPT_TOKENS, _PROBE_TOKENS, _PROBE_TOP_IDS = 32, 8, 64

MakeEngine = Callable[[], Engine]
Fetch = Callable[[Ref[Mapping[str, WireTensor]]], Mapping[str, WireTensor]]


class RolloutWorker:
    """Writes completions. A worker that starts again fetches the asked-for weights before it serves anything."""

    def __init__(
        self,
        rank: int,
        make_engine: MakeEngine,
        fetch: Fetch,
        num_top_ids: int = 0,
        stall_seconds: float = math.inf,
        prepare: Callable[[], None] | None = None,
        tasks: RunTasks | None = None,
    ) -> None:
        """Take what makes an engine, what fetches weights, and what runs the benchmarks, if any are run here.

        `num_top_ids`: of the student's likeliest ids to keep at each token, for a teacher that scores those.
        `stall_seconds`: without a token, after which the process ends itself; see `watch`. `prepare`: imports what the
        engine is made of.
        """
        self.prepare = prepare
        self._rank = rank
        self._make_engine = make_engine
        self._fetch = fetch
        self._num_top_ids = num_top_ids
        self.stall_seconds = stall_seconds
        self._tasks = tasks
        self._watch: Watch = NoWatch()
        self._probe: EngineProbe | None = None
        self._engine: Engine | None = None
        self._version = -1  # the checkpoint on disk, which nobody asks for
        self._has_written = False
        self._lineage = 0

    def __repr__(self) -> str:
        return f"RolloutWorker(rank={self._rank}, version={self._version})"

    @property
    def version(self) -> int:
        """Of the weights that the engine has: optimizer steps behind them; -1 for the checkpoint on disk."""
        return self._version

    @property
    def description(self) -> str:
        """What the engine computes with, in a few words; empty before there is one."""
        return self._engine.description if self._engine else ""

    def watch(self, file: Path) -> None:
        """End this process where no token comes for `stall_seconds`, with every thread's stack in `file`."""
        if math.isfinite(self.stall_seconds):
            self._watch = StallWatch(file, self.stall_seconds)

    def start(self) -> float:
        """Make the engine if there is none; return the seconds it took."""
        began = time.perf_counter()
        if self._engine is None:
            with span("engine"):
                self._engine = self._make_engine()
            self._engine.on_progress = self._watch.beat
        return time.perf_counter() - began

    def write(
        self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights, rules: SamplingRules
    ) -> tuple[float, list[Rollout]]:
        """Return the seconds spent, and a rollout for each planned sequence, written with `weights` by `rules`."""
        self.start()
        assert self._engine is not None
        began = time.perf_counter()
        is_first = not self._has_written
        with span("first weights") if is_first else nullcontext():
            self._load(self._engine, weights)
            if is_first:
                with self._watch.working():
                    self._probe = self._make_probe(self._engine, prompts[0])
        self._has_written = True
        requests = [_request(rules, s, p) for s, p in zip(sequences, prompts, strict=True)]
        with span("first rollouts") if is_first else nullcontext(), self._watch.working():
            completions = write_checked(self._completions, requests, rules.vocab_size, self._num_top_ids)
        rollouts = [
            Rollout(
                step=sequence.step,
                index=sequence.index,
                on_policy=True,
                prompt_ids=prompt.prompt_ids,
                completion_ids=completion.token_ids,
                policy_version=self._version,
                top_ids=completion.top_ids,
                is_cut=completion.is_cut,
                fault=fault,
                example=sequence.example,
                teacher=prompt.teacher,
            )
            for sequence, prompt, (completion, fault) in zip(sequences, prompts, completions, strict=True)
        ]
        return time.perf_counter() - began, rollouts

    def run_tasks(self, weights: Weights) -> TaskResults:
        """Return what the student scores on the benchmarks with `weights`."""
        assert self._tasks is not None
        self.start()
        assert self._engine is not None
        self._tasks.open()
        self._load(self._engine, weights)
        return self._tasks(self._engine, f"after step {weights.version}", self._watch)

    def _load(self, engine: Engine, weights: Weights) -> None:
        """Put `weights` into the engine, if it has others."""
        if (weights.version, weights.lineage) == (self._version, self._lineage):
            return
        tensors = self._fetch(weights.tensors)
        with self._watch.working():
            engine.load_weights(tensors)
        self._version, self._lineage = weights.version, weights.lineage

    def take_probe(self) -> EngineProbe | None:
        """Return what the engine predicted with the first weights that it was given; once."""
        probe, self._probe = self._probe, None
        return probe

    def _make_probe(self, engine: Engine, prompt: Example) -> EngineProbe | None:
        prompt_ids = prompt.prompt_ids[:_PROBE_PROMPT_TOKENS]
        prediction = engine.predict(prompt_ids, _PROBE_TOKENS, _PROBE_TOP_IDS)
        if prediction is None:
            return None
        return EngineProbe(
            policy_version=self._version,
            prompt_ids=prompt_ids,
            completion_ids=prediction.token_ids,
            top_ids=prediction.top_ids,
            logprobs=prediction.logprobs,
        )

    def _completions(self, requests: Sequence[SamplingRequest]) -> Sequence[Completion]:
        assert self._engine is not None
        if self._num_top_ids:
            return self._engine.generate_ranked(requests, self._num_top_ids)
        return self._engine.generate(requests)

    def complete(self, requests: Mapping[int, SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        """Yield completions by the keys of `requests` as they are finished, written with the engine's first weights."""
        self.start()
        assert self._engine is not None
        assert self._version == -1, "these are no longer the checkpoint's weights"
        keys = list(requests)
        with self._watch.working():
            for finished in self._engine.stream(list(requests.values())):
                yield [(keys[place], completion) for place, completion in finished]


def num_top_ids(config: Config) -> int:
    """Return how many of the student's likeliest ids travel with each token: those that the teacher is to score."""
    teacher = config.teacher
    return teacher.top_k if teacher.payload == "topk" and teacher.top_k_of == "student" else 0


def _request(rules: SamplingRules, sequence: PlannedSequence, prompt: Example) -> SamplingRequest:
    return sampling_request(rules.settings, prompt.prompt_ids, seed=sequence.seed, stop_token_ids=rules.stop_token_ids)
