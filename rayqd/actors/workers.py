"""Rollout workers and teachers as actors: each holds a worker, and returns its results as objects of their own."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.actor import ActorProxy

from rayqd.actors.pulse import give_signs
from rayqd.actors.topology import describe_node, stall_file
from rayqd.metrics.fidelity import TaskResults
from rayqd.model.compile_cache import keep_compiled_code
from rayqd.pipeline import Weights
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.sampling import SamplingRules
from rayqd.rollout.worker import RolloutWorker
from rayqd.spans import Span, process_start, record_span, take_spans
from rayqd.stall import read_stall
from rayqd.teacher.worker import ScoringReport, TeacherWorker
from rayqd.types import EngineProbe, Example, IntArray, PlannedSequence, Rollout, RolloutSummary, TeacherPayload

_START_RETRIES = 2  # of an actor that dies while it starts; its node may have been taken away


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """An actor that can work."""

    seconds: float  # that making the engine, or loading the model, took
    node: str  # "" where nodes have no names
    spans: tuple[Span, ...]  # of all that its process did until then
    description: str = ""  # what it works with, where that is worth a word


class PooledActor:
    """What a pool asks of its actors beside their work."""

    _stall = ""  # where the process before this one stood when it ended itself

    def __init__(self, load: Callable[[], float], prepare: Callable[[], None] | None) -> None:
        """`load` makes what the work needs, if it is not there, and returns the seconds that it took.

        `prepare` imports what `load` is going to need.
        """
        self._load = load
        self._prepare = prepare
        give_signs(ray.get_runtime_context().get_actor_id() or "")
        keep_compiled_code()
        record_span("process", process_start(), time.time())

    @ray.method
    def is_alive(self) -> bool:
        """Return True, as soon as there is a process to do so."""
        return True

    @ray.method
    def explain_exit(self) -> str:
        """Return why the process before this one ended itself; empty where it did not, or was on another node."""
        return f"{self._describe_stall()}, at {self._stall}" if self._stall else ""

    @ray.method(max_task_retries=_START_RETRIES)
    def prepare(self) -> None:
        """Import what the work needs, while nobody knows yet whether there is a model to load."""
        if self._prepare:
            self._prepare()

    @ray.method
    def load(self) -> float:
        """Make the engine, or load the model, if it is not there; return the seconds that it took."""
        return self._load()

    @ray.method(max_task_retries=_START_RETRIES)
    def start(self) -> Started:
        """Do what `load` does, on another node if the first one goes away meanwhile; tell what took how long."""
        seconds = self._load()
        return Started(seconds=seconds, node=describe_node(), spans=_take_spans(), description=self._describe_work())

    def _describe_work(self) -> str:
        return ""

    def _describe_stall(self) -> str:
        return "stood still"

    def _watch_stalls(self, watch: Callable[[Path], None]) -> None:
        """Read what the process before this one left, and have `watch` write the same file."""
        file = stall_file(_actor_label())
        self._stall = read_stall(file)
        if self._stall:
            file.replace(file.with_suffix(f".{os.getpid()}.txt"))
        watch(file)


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingReport:
    """What one call of `RolloutActor.write` did."""

    seconds: float
    rollouts: list[RolloutSummary]
    spans: tuple[Span, ...] = ()  # of a worker's first call
    probe: EngineProbe | None = None  # of a worker that was first given weights


class RolloutActor(PooledActor):
    """A rollout worker. Every rollout is an object of its own, so that each travels only to who needs it."""

    _worker: RolloutWorker | None = None  # Ray asks for the repr of an actor also where __init__ failed

    def __init__(self, worker: RolloutWorker) -> None:
        super().__init__(worker.start, worker.prepare)
        self._worker = worker
        self._watch_stalls(worker.watch)

    def _describe_stall(self) -> str:
        assert self._worker is not None
        return f"made no token for ray.stall_seconds={self._worker.stall_seconds:g}"

    def _describe_work(self) -> str:
        return self._worker.description if self._worker else ""

    def __repr__(self) -> str:
        """Name the actor; logs and Ray's dashboard keep the name that it has after __init__, without a version."""
        version = self._worker.version if self._worker else -1
        return f"RolloutWorker({_actor_label()}{f', version={version}' if version >= 0 else ''})"

    def write(
        self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights, rules: SamplingRules
    ) -> tuple[WritingReport, *tuple[Rollout, ...]]:
        """Return a report, and a rollout for each of `sequences`; see `RolloutWorker.write`."""
        assert self._worker is not None
        seconds, rollouts = self._worker.write(sequences, prompts, weights, rules)
        summaries = [rollout.summary for rollout in rollouts]
        probe = self._worker.take_probe()
        return WritingReport(seconds=seconds, rollouts=summaries, spans=_take_spans(), probe=probe), *rollouts

    def run_tasks(self, weights: Weights) -> tuple[float, TaskResults]:
        """Return the seconds spent, and what the student scores; see `RolloutWorker.run_tasks`."""
        assert self._worker is not None
        began = time.perf_counter()
        results = self._worker.run_tasks(weights)
        return time.perf_counter() - began, results

    def complete(self, requests: Mapping[int, SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        """Yield completions by the keys of `requests`; see `RolloutWorker.complete`."""
        assert self._worker is not None
        yield from self._worker.complete(requests)

    @ray.method
    def locate_process(self) -> tuple[str, int]:
        """Return node and process id."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


class TeacherActor(PooledActor):
    """A teacher. Every payload is an object of its own, which goes straight to the learner worker that needs it."""

    def __init__(self, worker: TeacherWorker) -> None:
        super().__init__(worker.start, worker.prepare)
        self._worker = worker
        self._watch_stalls(worker.watch)

    def _describe_stall(self) -> str:
        return f"read no batch for ray.stall_seconds={self._worker.stall_seconds:g}"

    def __repr__(self) -> str:
        return f"TeacherWorker({_actor_label()})"

    def score(self, *rollouts: Rollout) -> tuple[ScoringReport, *tuple[TeacherPayload | None, ...]]:
        """Return a report, and a payload for each of `rollouts`; see `TeacherWorker.score`."""
        report, payloads = self._worker.score(*rollouts)
        return replace(report, spans=_take_spans()), *payloads

    def hidden(self, *rollouts: Rollout) -> tuple[ScoringReport, *tuple[TeacherPayload | None, ...]]:
        """Return the same as hidden states; see `TeacherWorker.hidden`."""
        report, payloads = self._worker.hidden(*rollouts)
        return replace(report, spans=_take_spans()), *payloads


RolloutHandle = ActorProxy[RolloutActor]
TeacherHandle = ActorProxy[TeacherActor]


def _take_spans() -> tuple[Span, ...]:
    """Return what this process recorded since the last call, under the name that its actor has in the run."""
    return take_spans(_actor_label().rpartition("/")[2])


def _actor_label() -> str:
    """Return run, role and rank of the actor that this is called in: `mine/rollout-0`."""
    return str(ray.get_runtime_context().get_actor_name()).removeprefix("rayqd/")
