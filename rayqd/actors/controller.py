"""The actor where driver and learner meet: it runs the pipeline and keeps the run's events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray

from rayqd.actors.node import localize_run_dir
from rayqd.actors.pool import Pool
from rayqd.actors.pooled import CacheCounts, PooledRollouts, PooledTeachers, RoleClock
from rayqd.actors.prometheus import MetricSeries
from rayqd.actors.quarantine import Quarantine
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.data import ExampleSet, calibration_sequences, make_plan
from rayqd.events import LearnerStep, NoticeEvent, ReportedEvent, RoleMetrics, StepEvent, TimedEvent
from rayqd.pipeline import Pipeline, ScoredRef, Weights
from rayqd.runs.paths import RAY_TRAIN
from rayqd.types import Example, IntArray


class Controller:
    """An asynchronous actor: a method that waits keeps none of the others waiting."""

    _step = 0  # optimizer steps done

    def __init__(self, config: Config, rollout_actors: Sequence[Any], teacher_actors: Sequence[Any]) -> None:
        self._config = config
        actors = {"rollout": rollout_actors, "teacher": teacher_actors}
        timeout = config.ray.placement_timeout_seconds
        self._pools = {role: Pool(role, workers, timeout, self.notice) for role, workers in actors.items()}
        self._clocks = {role: RoleClock() for role in self._pools}
        self._cache = CacheCounts()
        self._quarantine = Quarantine(config, self.report)
        self._events: list[TimedEvent] = []
        self._series = MetricSeries(config.name)
        self._new_event = asyncio.Condition()
        self._has_data = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._num_waiting = 0  # learner workers that wait for a batch
        self._training: list[Example] = []
        self._pipeline: Pipeline | None = None
        self._heldout: Sequence[Example] = []
        self._scored_heldout: asyncio.Task[list[ScoredRef]] | None = None

    def __repr__(self) -> str:
        return f"Controller({self._config.name}{f', step={self._step}' if self._step else ''})"

    async def train(self, placement: Placement) -> None:
        """Run the learner in Ray Train until it ends; raises what ended it."""
        from rayqd.actors.learner import make_trainer

        own_handle = ray.get_runtime_context().current_actor
        trainer = make_trainer(self._config, own_handle, placement, localize_run_dir(self._config).run_dir / RAY_TRAIN)
        series = asyncio.create_task(self._series.keep_alive())
        try:
            await asyncio.to_thread(trainer.fit)
        finally:
            series.cancel()

    async def set_data(self, training: ExampleSet, heldout: ExampleSet) -> None:
        """Take the rows of the run; the teacher starts on the held-out ones at once."""
        config = self._config
        self._pipeline = Pipeline(
            plan=make_plan(config, len(training.examples)),
            examples=training.examples,
            num_steps=config.learner.steps,
            max_staleness=config.rollout.max_staleness,
            rollouts=PooledRollouts(self._pools["rollout"], self._clocks["rollout"]),
            teachers=PooledTeachers(self._pools["teacher"], self._clocks["teacher"], self._cache),
            put=ray.put,
            quarantine=self._quarantine.add,
        )
        self._heldout = heldout.examples
        self._scored_heldout = asyncio.create_task(self._pipeline.heldout(self._heldout))
        self._training = training.examples
        self._has_data.set()

    async def heldout(self, attempt: int) -> list[ScoredRef]:
        """Return the held-out rows with the teacher's payloads, anew where an earlier attempt's were lost."""
        pipeline = await self._wait_for_pipeline()
        if attempt:
            return await pipeline.heldout(self._heldout)
        assert self._scored_heldout is not None
        return await self._scored_heldout

    async def calibration(self) -> list[IntArray]:
        """Return the first training rows, prompts and completions, up to `quant.calibration_tokens` tokens."""
        await self._has_data.wait()
        return calibration_sequences(self._training, self._config.quant.calibration_tokens)

    async def batch(self, step: int, attempt: int) -> list[ScoredRef]:
        """Return all that the learner trains on at `step`; see `Pipeline.batch`."""
        self._num_waiting += 1
        try:
            return await (await self._wait_for_pipeline()).batch(step, attempt)
        finally:
            self._num_waiting -= 1

    async def list_awaited_workers(self) -> list[str]:
        """Return the workers that the learner waits for; none while it is at work itself."""
        return [name for pool in self._pools.values() for name in pool.busy_workers] if self._num_waiting else []

    async def publish(self, version: int, tensors: list[Any]) -> None:
        """Write rollouts with these weights from now on.

        `tensors` is a reference inside a list, so that Ray hands over the reference and not the bytes.
        """
        (await self._wait_for_pipeline()).publish(Weights(version=version, tensors=tensors[0]))

    async def report(self, reported: ReportedEvent) -> None:
        """Keep an event for the driver; what rollout workers and teachers did for a step is put beside its own part."""
        event = self._step_event(reported) if isinstance(reported, LearnerStep) else reported
        self._series.record(event)
        async with self._new_event:
            self._events.append(TimedEvent(event=event, time=time.time()))
            self._new_event.notify_all()

    async def notice(self, text: str) -> None:
        """Keep a message that the user should read, and that does not end the run."""
        await self.report(NoticeEvent(text=text))

    async def events(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        """Return the events from number `after` on; waits at most `timeout_seconds` for one."""
        async with self._new_event:
            try:
                await asyncio.wait_for(self._new_event.wait_for(lambda: len(self._events) > after), timeout_seconds)
            except TimeoutError:
                return []
            return self._events[after:]

    async def stop(self) -> None:
        """Ask the learner to save its last step and to go no further; a `stopped` event says that it has."""
        self._stop_requested.set()

    async def wait_for_stop(self) -> None:
        """Return once the run is to stop."""
        await self._stop_requested.wait()

    async def role_seconds(self) -> dict[str, float]:
        """Return the seconds of work so far of rollout workers and teachers."""
        return {role: clock.total_seconds for role, clock in self._clocks.items()}

    async def _wait_for_pipeline(self) -> Pipeline:
        await self._has_data.wait()
        assert self._pipeline is not None
        return self._pipeline

    def _step_event(self, learner: LearnerStep) -> StepEvent:
        self._step = learner.step
        return StepEvent(learner=learner, roles=self._role_metrics(learner.step - 1))  # sequences count from 0

    def _role_metrics(self, step: int) -> RoleMetrics:
        rollout, teacher = self._clocks["rollout"], self._clocks["teacher"]
        return RoleMetrics(
            num_retries=sum(pool.num_retries for pool in self._pools.values()),
            num_quarantined=self._quarantine.num_sequences,
            teacher_cache_hits=self._cache.hits.get(step, 0),
            teacher_cache_misses=self._cache.misses.get(step, 0),
            rollout_seconds=rollout.seconds.get(step, 0.0),
            rollout_tokens_per_second=rollout.tokens_per_second(step),
            teacher_seconds=teacher.seconds.get(step, 0.0),
            teacher_tokens_per_second=teacher.tokens_per_second(step),
        )
