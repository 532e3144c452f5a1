"""What the run's controller keeps does not grow with the steps: its own code in this process, over fakes of Ray's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError

from rayqd.actors import controller as module
from rayqd.actors import pool
from rayqd.actors.controller import Controller
from rayqd.actors.staleness import Staleness
from rayqd.actors.workers import WritingReport
from rayqd.config import Config
from rayqd.data.example_set import ExampleSet
from rayqd.events import LearnerStep
from rayqd.rollout.fake import FakeEngine
from rayqd.rollout.sampling import SamplingRules
from rayqd.rollout.worker import RolloutWorker
from rayqd.teacher.worker import ScoringReport
from rayqd.types import EngineProbe, Example

CALLS_BETWEEN_DEATHS = 13  # of one role
EARLY, LATE = 40, 160  # steps after which is counted
STEPS_BETWEEN_BAD = 4  # sequences that the teacher has no numbers for


class Held:
    """A value that one may wait for, as a reference of Ray's."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, Any]:
        yield
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


class NoSeries:
    def __init__(self, run: str) -> None: ...

    def record(self, event: Any) -> None: ...


class Actor:
    """A handle: of the calls of a role's work each thirteenth finds its actor dead, and the next one started again."""

    num_calls_of_role = 0

    def __init__(self) -> None:
        self.num_calls = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return Method(self, name)

    def call(self, name: str, num_returns: int, *args: Any) -> Any:
        if name in ("is_alive", "explain_exit", "load"):
            return Held({"is_alive": True, "explain_exit": "", "load": 0.1}[name])
        self.num_calls += 1
        type(self).num_calls_of_role += 1
        if self.num_calls_of_role % CALLS_BETWEEN_DEATHS == 0:
            self.__init__()  # type: ignore[misc]
            return [Held(RayActorError()), *map(Held, [None] * (num_returns - 1))]
        report, values = self.work(name, *args)
        assert len(values) == num_returns - 1
        return [Held(report), *map(Held, values)]

    def work(self, name: str, *args: Any) -> tuple[Any, list[Any]]:
        raise NotImplementedError


class Method:
    def __init__(self, actor: Actor, name: str, num_returns: int = 1) -> None:
        self.actor, self.name, self.num_returns = actor, name, num_returns

    def options(self, num_returns: int) -> Method:
        return Method(self.actor, self.name, num_returns)

    def remote(self, *args: Any) -> Any:
        return self.actor.call(self.name, self.num_returns, *args)


class Rollouts(Actor):
    """A real worker with an engine without a model; its first call has a probe."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = RolloutWorker(0, lambda: FakeEngine(128), lambda ref: ref.value)  # type: ignore[attr-defined]

    def work(self, name: str, *args: Any) -> tuple[Any, list[Any]]:
        assert name == "write"
        seconds, rollouts = self.worker.write(*args)
        ids, numbers = np.zeros(4, np.int32), np.zeros((4, 2), np.float32)
        probe = EngineProbe(
            policy_version=self.worker.version,
            prompt_ids=ids,
            completion_ids=ids,
            top_ids=ids[:, None],
            logprobs=numbers,
        )
        summaries = [rollout.summary for rollout in rollouts]
        return WritingReport(seconds=seconds, rollouts=summaries, probe=None if self.num_calls > 1 else probe), rollouts


class Teachers(Actor):
    def work(self, name: str, *args: Any) -> tuple[Any, list[Any]]:
        bad = (0,) if name == "score" and args[0].value.step % STEPS_BETWEEN_BAD == 0 else ()
        report = ScoringReport(
            seconds=0.1, num_tokens=9, num_cache_hits=1, num_cache_misses=2, num_bytes=64, quarantined=bad
        )
        return report, ["payload"] * len(args)


def count_held(found: object, seen: set[int] | None = None) -> int:
    """Count the elements of every container that `found` holds, or that something of rayqd's in it holds."""
    seen = set() if seen is None else seen
    if id(found) in seen or isinstance(found, (str, bytes, np.ndarray, Config)):
        return 0
    seen.add(id(found))
    parts: list[object] = []
    if isinstance(found, Mapping):
        parts = [*found.keys(), *found.values()]
    elif isinstance(found, (list, tuple, set, frozenset, deque)):
        parts = [*found]
    elif type(found).__module__.startswith("rayqd."):
        own = [getattr(found, field.name, None) for field in fields(found)] if is_dataclass(found) else []
        return sum(count_held(part, seen) for part in (*own, *getattr(found, "__dict__", {}).values()))
    return len(parts) + sum(count_held(part, seen) for part in parts)


def test_everything_that_is_held_is_counted() -> None:
    report = ScoringReport(
        seconds=0.1, num_tokens=9, num_cache_hits=1, num_cache_misses=2, num_bytes=64, quarantined=(1, 2), kept=(3,)
    )
    assert count_held({"a": [1, 2], "b": {3}, "c": report}) == 6 + 2 + 1 + 2 + 1


@pytest.mark.parametrize(("staleness", "lmbda"), [(0, 1.0), (2, 0.5)])
async def test_no_structure_of_the_controller_grows_with_the_steps(
    staleness: int, lmbda: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MetricSeries", NoSeries)
    monkeypatch.setattr(module, "put", Held)
    monkeypatch.setattr(pool, "_POLL_SECONDS", 0.0)
    config = Config(
        distill={"lmbda": lmbda},
        learner={"batch_size": 8, "steps": 1000},
        rollout={"max_staleness": staleness, "max_new_tokens": 4},
        teacher={"max_bad_fraction": 1.0},
    )
    workers: Any = [Rollouts() for _ in range(4)], [Teachers() for _ in range(2)]
    controller: Any = Controller(config, *workers, 2, Staleness(config, roles_share=False, store_bytes=1e9))
    rows = [
        Example(row=i, prompt_ids=np.full(4, i, np.int32), completion_ids=np.full(3, i, np.int32)) for i in range(9)
    ]
    data = ExampleSet(examples=rows, keys=np.arange(9, dtype=np.uint64), source="rows", num_rows=9, left_out=())
    await controller.set_data(data, data, SamplingRules(settings=config.rollout))
    held: dict[int, int] = {}
    num_events = num_left_out = num_deaths = 0
    for step in range(LATE):
        await controller.publish(step, [Held({})])
        batch = await controller.batch(step, 0)
        await controller.notes(step)
        await controller.report(made_step(step + 1, len(batch)))
        events = await controller.events(num_events, 0.1)
        num_events += len(events)
        num_left_out += sum(type(timed.event).__name__ == "QuarantineEvent" for timed in events)
        num_deaths += sum(bool(getattr(timed.event, "died", "")) for timed in events)
        await asyncio.sleep(0)
        if step + 1 in (EARLY, LATE):
            await controller.events(num_events, 0.001)
            held[step + 1] = count_held(controller)
    assert num_left_out >= LATE // STEPS_BETWEEN_BAD
    assert num_deaths > 30
    assert held[LATE] < held[EARLY] + 20, held


def made_step(step: int, num: int) -> LearnerStep:
    return LearnerStep(
        step=step,
        loss=0.5,
        grad_norm=1.0,
        lr=1e-4,
        num_tokens=7 * num,
        num_loss_tokens=3 * num,
        num_on_policy=num,
        staleness=0,
        wait_seconds=0.1,
        learner_seconds=0.1,
        learner_tokens_per_second=70.0,
        engine_error=None,
        mean_completion_tokens=3.0,
        cut_share=0.0,
    )
