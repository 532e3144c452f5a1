"""The actor where driver and learner meet: it runs the pipeline and keeps the run's events."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import cast

import ray
from ray.actor import ActorProxy

from rayqd.actors.event_log import EventLog
from rayqd.actors.node import localize_run_dir
from rayqd.actors.pool import Pool
from rayqd.actors.pooled import CacheCounts, PooledRollouts, PooledTeachers, RoleClock
from rayqd.actors.prometheus import MetricSeries
from rayqd.actors.quarantine import Quarantine
from rayqd.actors.ray_types import put
from rayqd.actors.staleness import Staleness
from rayqd.actors.workers import RolloutHandle, TeacherHandle
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.data import ExampleSet, calibration_sequences, make_plan
from rayqd.data.example_set import RunningText
from rayqd.data.run_data import examples_by_weight, weights_of
from rayqd.data.shares import count_drawn
from rayqd.events import LearnerStep, NoticeEvent, ReportedEvent, RoleMetrics, StartEvent, StepEvent, TimedEvent
from rayqd.metrics.fidelity import TaskResults
from rayqd.pipeline import Pipeline, Ref, ScoredRef, Weights
from rayqd.rollout.sampling import SamplingRules
from rayqd.runs.paths import RAY_TRAIN
from rayqd.spans import Span, process_start, record_span, span, take_spans
from rayqd.types import EngineProbe, Example, IntArray, WireTensor


class Controller:
    """An asynchronous actor: a method that waits keeps none of the others waiting."""

    _step = 0  # optimizer steps done

    def __init__(
        self,
        config: Config,
        rollouts: Sequence[RolloutHandle],
        teachers: Sequence[TeacherHandle],
        prefetch_steps: int,
        staleness: Staleness,
    ) -> None:
        record_span("process", process_start(), time.time())
        faulthandler.register(signal.SIGUSR1)  # where it does not answer, the driver asks for its stacks
        self._config = config
        self._prefetch_steps = prefetch_steps
        self._staleness = staleness
        self._lineage = time.time_ns()
        timeout = config.ray.placement_timeout_seconds
        self._series = MetricSeries(config.name)
        self._log = EventLog(self._series)
        stall = config.ray.stall_seconds
        self._rollouts = Pool("rollout", rollouts, timeout, self._notice, stall)
        each = config.teacher.num_workers
        self._teachers = [
            Pool("teacher", teachers[first : first + each], timeout, self._notice, stall, first)
            for first in range(0, len(teachers), each)
        ]
        self._rollout_clock, self._teacher_clock = RoleClock(), RoleClock()
        self._cache = CacheCounts()
        self._pooled_rollouts = PooledRollouts(self._rollouts, self._rollout_clock)
        self._quarantine = Quarantine(config, self._log.add)
        self._has_data = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._num_waiting = 0  # learner workers that wait for a batch
        self._training: ExampleSet | None = None
        self._pipeline: Pipeline | None = None
        self._heldout: Sequence[Example] = []
        self._text: RunningText | None = None
        self._scored_heldout: asyncio.Task[list[ScoredRef]] | None = None

    def __repr__(self) -> str:
        return f"Controller({self._config.name}{f', step={self._step}' if self._step else ''})"

    @ray.method
    async def train(self, placement: Placement, alone: bool) -> None:
        """Run the learner in Ray Train until it ends; raises what ended it. `alone`: see `make_trainer`."""
        with span("import ray.train"):
            await asyncio.to_thread(import_module, "rayqd.actors.learner")  # on a busy machine it keeps nobody waiting
            from rayqd.actors.learner import make_trainer

        own_handle = cast("ControllerHandle", ray.get_runtime_context().current_actor)
        storage = localize_run_dir(self._config).run_dir / RAY_TRAIN
        trainer = make_trainer(self._config, own_handle, placement, storage, alone=alone)
        series = asyncio.create_task(self._series.keep_alive())
        try:
            await asyncio.to_thread(trainer.fit)
        finally:
            series.cancel()

    @ray.method
    async def process_id(self) -> int:
        """Return the number of its process, which is on the driver's node."""
        return os.getpid()

    @ray.method
    async def set_data(self, training: ExampleSet, heldout: ExampleSet, rules: SamplingRules | None) -> None:
        """Take the rows of the run, and by what `rules` the student writes, if it does.

        The teacher starts on the held-out rows at once.
        """
        config = self._config
        self._pooled_rollouts.rules = rules
        self._pipeline = Pipeline(
            plan=make_plan(config, training.sizes),
            examples=training.examples,
            num_steps=config.learner.steps,
            max_staleness=self._staleness.bound,
            prefetch_steps=self._prefetch_steps,
            rollouts=self._pooled_rollouts,
            teachers=PooledTeachers(self._teachers, self._teacher_clock, self._cache),
            put=put,
            quarantine=self._quarantine.add,
        )
        self._heldout, self._text = heldout.examples, heldout.text
        self._scored_heldout = asyncio.create_task(self._pipeline.heldout(self._heldout))
        self._training = training
        self._has_data.set()

    @ray.method
    async def wait_for_data(self) -> None:
        """Return once the run has its rows, before which nobody has looked at its model."""
        await self._has_data.wait()

    @ray.method
    async def heldout(self, attempt: int) -> list[ScoredRef]:
        """Return the held-out rows with the teacher's payloads, anew where an earlier attempt's were lost."""
        pipeline = await self._wait_for_pipeline()
        if attempt:
            return await pipeline.heldout(self._heldout)
        assert self._scored_heldout is not None
        return await self._scored_heldout

    @ray.method
    async def text(self) -> RunningText | None:
        """Return the text whose perplexity is measured beside the held-out rows; None without one."""
        await self._has_data.wait()
        return self._text

    @ray.method
    async def calibration(self) -> list[IntArray]:
        """Return the first training rows, prompts and completions, up to `quant.calibration_tokens` tokens."""
        await self._has_data.wait()
        assert self._training is not None
        examples = examples_by_weight(self._training, self._config)
        return calibration_sequences(examples, self._config.quant.calibration_tokens)

    @ray.method
    async def batch(self, step: int, attempt: int) -> list[ScoredRef]:
        """Return all that the learner trains on at `step`; see `Pipeline.batch`."""
        self._num_waiting += 1
        try:
            return await (await self._wait_for_pipeline()).batch(step, attempt)
        finally:
            self._num_waiting -= 1

    @ray.method
    async def notes(self, version: int) -> tuple[tuple[EngineProbe, ...], int | None]:
        """Return what the learner must know of a step beside its sequences.

        What rollout workers predicted whose first weights were those of `version`, and what rollout.max_staleness=auto
        has come to.
        """
        return self._pooled_rollouts.probes(version), self._staleness.chosen

    @ray.method
    async def list_awaited_workers(self) -> list[str]:
        """Return the workers that the learner waits for; none while it is at work itself."""
        pools = (self._rollouts, *self._teachers)
        return [name for pool in pools for name in pool.busy_workers] if self._num_waiting else []

    @ray.method
    async def publish(self, version: int, tensors: Sequence[Ref[Mapping[str, WireTensor]]]) -> None:
        """Write rollouts with these weights from now on.

        `tensors` is a reference inside a list, so that Ray hands over the reference and not the bytes.
        """
        weights = Weights(version=version, tensors=tensors[0], lineage=self._lineage)
        (await self._wait_for_pipeline()).publish(weights)

    @ray.method
    async def run_tasks(self, version: int, tensors: Sequence[Ref[Mapping[str, WireTensor]]]) -> TaskResults:
        """Return what a rollout worker with these weights scores on the benchmarks; `tensors` as of `publish`."""
        weights = Weights(version=version, tensors=tensors[0], lineage=self._lineage)
        return await self._pooled_rollouts.run_tasks(weights)

    @ray.method
    async def report(self, reported: ReportedEvent) -> None:
        """Keep an event for the driver; what rollout workers and teachers did for a step is put beside its own part."""
        event = self._step_event(reported) if isinstance(reported, LearnerStep) else reported
        await self._log.add(event)
        match event:
            case StartEvent(max_staleness=chosen):
                await self._apply_staleness(self._staleness.begin(chosen))
            case StepEvent():
                await self._apply_staleness(self._staleness.add(event))
            case _:
                pass

    @ray.method
    async def events(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        """Return the events from number `after` on; waits at most `timeout_seconds` for one."""
        return await self._log.read(after, timeout_seconds)

    @ray.method
    async def stop(self) -> None:
        """Ask the learner to save its last step and to go no further; a `stopped` event says that it has."""
        self._stop_requested.set()

    @ray.method
    async def wait_for_stop(self) -> None:
        """Return once the run is to stop."""
        await self._stop_requested.wait()

    @ray.method
    async def role_seconds(self) -> dict[str, float]:
        """Return the seconds of work so far of rollout workers and teachers."""
        return {"rollout": self._rollout_clock.total_seconds, "teacher": self._teacher_clock.total_seconds}

    @ray.method
    async def role_spans(self) -> list[Span]:
        """Return what the controller's process did, and what the first calls of rollout workers and teachers took."""
        return [*take_spans("controller"), *self._rollout_clock.spans, *self._teacher_clock.spans]

    async def _apply_staleness(self, line: str) -> None:
        (await self._wait_for_pipeline()).allow_staleness(self._staleness.bound)
        if line:
            await self._notice(line)

    async def _notice(self, text: str, died: str = "") -> None:
        await self._log.add(NoticeEvent(text=text, died=died))

    async def _wait_for_pipeline(self) -> Pipeline:
        await self._has_data.wait()
        assert self._pipeline is not None
        return self._pipeline

    def _step_event(self, learner: LearnerStep) -> StepEvent:
        self._step = learner.step
        step = learner.step - 1  # sequences count from 0
        event = StepEvent(learner=learner, roles=self._role_metrics(step))
        for each in (self._rollout_clock, self._teacher_clock, self._cache, self._quarantine, self._pooled_rollouts):
            each.forget(step)
        return event

    def _count_by_source(self, step: int) -> dict[str, int] | None:
        """Count the sequences that `step` draws from each source; None where there is one."""
        config = self._config
        if not config.data.sources:
            return None
        before, after = (count_drawn(weights_of(config), end * config.learner.batch_size) for end in (step, step + 1))
        counts = (now - earlier for earlier, now in zip(before, after, strict=True))
        return dict(zip(config.data.source_names, counts, strict=True))

    def _role_metrics(self, step: int) -> RoleMetrics:
        return RoleMetrics(
            num_retries=self._rollouts.num_retries + sum(pool.num_retries for pool in self._teachers),
            num_quarantined=self._quarantine.num_sequences,
            teacher_cache_hits=self._cache.hits.get(step, 0),
            teacher_cache_misses=self._cache.misses.get(step, 0),
            rollout_seconds=self._rollout_clock.seconds.get(step, 0.0),
            rollout_tokens_per_second=self._rollout_clock.tokens_per_second(step),
            teacher_seconds=self._teacher_clock.seconds.get(step, 0.0),
            teacher_tokens_per_second=self._teacher_clock.tokens_per_second(step),
            sequences_by_source=self._count_by_source(step),
            payload_bytes=self._cache.num_bytes.get(step, 0),
        )


ControllerHandle = ActorProxy[Controller]
