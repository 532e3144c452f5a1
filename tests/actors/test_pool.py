"""Calls that survive their actor, and what becomes of objects that do not, on real Ray actors."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectLostError

from rayqd.actors.learner import ControllerFeed
from rayqd.actors.pool import Pool
from rayqd.actors.pooled import CacheCounts, PooledRollouts, PooledTeachers, RoleClock
from rayqd.actors.ray_types import fetch
from rayqd.actors.workers import PooledActor, RolloutActor, TeacherActor
from rayqd.audit import Call
from rayqd.config.sections import RolloutConfig
from rayqd.errors import DataError, WorkerError
from rayqd.pipeline import LostError, RolloutRef, ScoredRef, Weights
from rayqd.rollout.fake import FakeEngine
from rayqd.rollout.sampling import SamplingRules
from rayqd.rollout.worker import RolloutWorker
from rayqd.teacher.worker import LoadedTeacher, TeacherWorker
from rayqd.types import EngineProbe, Example, PlannedSequence, Rollout, RolloutSummary, SampledPayload

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def worker_class() -> Any:
    """Defined in a function, so that it travels by value: Ray's workers cannot import a test."""

    class Worker(PooledActor):
        def __init__(self) -> None:
            super().__init__(lambda: time.sleep(2) or 2.0, None)

        def echo(self, value: int) -> tuple[int, int]:
            return value, 10 * value

        def die_until(self, marker: str, deaths: int) -> tuple[int, str]:
            """Dies `deaths` times, counted in the file `marker`, which outlives it."""
            with open(marker, "a") as stream:
                stream.write("x")
            if Path(marker).stat().st_size <= deaths:
                os._exit(1)
            return Path(marker).stat().st_size, "alive"

        def refuse(self) -> tuple[None, None]:
            raise DataError("rows.jsonl:3: no messages")

        def crash(self) -> tuple[None, None]:
            raise ZeroDivisionError("a bug")

    return Worker


Worker = worker_class()


def pool(count: int = 1, *, max_restarts: int = -1, heard: list[str] | None = None) -> Pool[Any]:
    """Its notices are added to `heard`."""
    actor: Any = ray.remote(Worker)
    actors = [actor.options(num_cpus=0, max_restarts=max_restarts).remote() for _ in range(count)]

    async def notice(text: str, died: str = "") -> None:
        if heard is not None:
            heard.append(text)

    return Pool("rollout", actors, notice=notice)


async def test_every_return_value_is_an_object_of_its_own() -> None:
    report, refs, _ = await pool().call(Worker.echo, 1, 4)
    assert report == 4
    assert ray.get(refs) == [40]


async def test_work_of_a_dead_actor_is_done_by_its_next_life(tmp_path: Path) -> None:
    workers = pool()
    size, refs, _ = await workers.call(Worker.die_until, 1, str(tmp_path / "marker"), 1)
    assert size == 2
    assert ray.get(refs) == ["alive"]
    assert workers.num_retries == 1


async def test_work_that_kills_every_life_ends_with_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="rollout-0 died 3 times at the same work"):
        await pool().call(Worker.die_until, 1, str(tmp_path / "marker"), 99)


async def test_an_error_of_ours_comes_back_as_it_was_and_is_not_tried_again() -> None:
    workers = pool()
    with pytest.raises(DataError, match=r"^rows.jsonl:3: no messages$"):
        await workers.call(Worker.refuse, 1)
    assert workers.num_retries == 0


async def test_any_other_error_names_the_worker_and_the_error() -> None:
    with pytest.raises(WorkerError) as caught:
        await pool().call(Worker.crash, 1)
    assert str(caught.value) == "rollout-0 failed: ZeroDivisionError: a bug"


async def test_an_actor_that_stays_away_is_asked_for_nothing_more(tmp_path: Path) -> None:
    workers = pool(2, max_restarts=0)
    size, refs, _ = await workers.call(Worker.die_until, 1, str(tmp_path / "marker"), 1)
    assert (size, ray.get(refs)) == (2, ["alive"])
    for number in range(5):
        report, refs, _ = await workers.call(Worker.echo, 1, number)
        assert (report, ray.get(refs)) == (number, [10 * number])
    assert workers.num_retries == 1


async def test_an_actor_that_still_loads_gets_no_work_while_another_can_do_it(tmp_path: Path) -> None:
    heard: list[str] = []
    workers = pool(2, heard=heard)
    await workers.call(Worker.die_until, 1, str(tmp_path / "marker"), 1)  # rollout-0 dies of it, rollout-1 does not
    while not any("is back" in line for line in heard):
        _, _, who = await workers.call(Worker.echo, 1, 1)
        assert who.worker == "rollout-1"
        await asyncio.sleep(0.05)


async def test_work_that_nobody_comes_back_for_ends_with_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="every rollout worker has died for good: "):
        await pool(max_restarts=0).call(Worker.die_until, 1, str(tmp_path / "marker"), 99)


async def test_a_death_is_told_once_whatever_was_in_flight_and_so_is_that_the_engine_is_there_again(
    tmp_path: Path,
) -> None:
    heard: list[str] = []
    workers = pool(heard=heard)
    calls = [workers.call(Worker.die_until, 1, str(tmp_path / "marker"), 1)]
    calls += [workers.call(Worker.echo, 1, number) for number in range(3)]
    done = asyncio.gather(*calls)
    await asyncio.sleep(0)
    assert workers.busy_workers == ["rollout-0"]
    await done
    assert workers.num_retries == 4
    assert workers.busy_workers == []
    died, back = heard
    assert re.fullmatch(r"rollout-0 died \(.+\); it is started again, its work is done again", died)
    assert "unavailable" not in died
    seconds = re.fullmatch(r"rollout-0 is back after (\d+) s", back)
    assert seconds
    assert int(seconds[1]) >= 2


async def test_an_actor_that_does_not_come_back_is_told(tmp_path: Path) -> None:
    heard: list[str] = []
    workers = pool(2, max_restarts=0, heard=heard)
    await workers.call(Worker.die_until, 1, str(tmp_path / "marker"), 1)
    while len(heard) < 2:
        await asyncio.sleep(0.1)
    assert heard[0].startswith("rollout-0 died (The actor died unexpectedly before finishing this task.); ")
    assert heard[1] == "rollout-0 does not come back (The actor died unexpectedly before finishing this task.)"
    assert workers.busy_workers == []


def lost_object() -> Any:
    """A reference to something that is gone together with the process that it belonged to."""

    class Owner:
        def make(self) -> list[Any]:
            return [ray.put(np.zeros(100_000))]

    actor: Any = ray.remote(Owner)
    owner = actor.options(num_cpus=0).remote()
    (ref,) = ray.get(owner.make.remote())
    ray.kill(owner)
    while True:
        try:
            ray.get(ref)
        except ObjectLostError:
            return ref


async def test_work_whose_argument_is_lost_is_not_tried_again_but_told() -> None:
    workers = pool()
    with pytest.raises(LostError, match="an argument of echo"):
        await workers.call(Worker.echo, 1, lost_object())
    assert workers.num_retries == 0


async def test_each_reference_to_a_rollout_comes_with_the_summary_of_the_rollout_that_it_refers_to() -> None:
    settings = RolloutConfig(min_new_tokens=1, max_new_tokens=40)
    workers = [RolloutWorker(rank, lambda: FakeEngine(99), fetch) for rank in range(2)]
    handles = [ray.remote(RolloutActor).options(num_cpus=0).remote(worker) for worker in workers]
    clock = RoleClock()
    sequences = [PlannedSequence(step=3, index=i, example=i, on_policy=True, seed=i) for i in range(7)]
    prompts = [
        Example(row=i, prompt_ids=np.zeros(i + 1, np.int32), completion_ids=np.zeros(1, np.int32), teacher=i % 3)
        for i in range(7)
    ]
    weights = Weights(version=5, tensors=ray.put({}))
    rollouts = PooledRollouts(Pool("rollout", handles), clock)
    rollouts.rules = SamplingRules(settings=settings)
    refs = await rollouts.write(sequences, prompts, weights)
    assert {ref.wrote for ref in refs} == {Call(worker=f"rollout-{rank}") for rank in range(len(handles))}
    assert [ref.summary.tokens for ref in refs] == [fetch(ref.ref).digest for ref in refs]
    assert all(ref.summary.example == sequences[ref.summary.index].example for ref in refs)
    assert sorted(ref.summary.index for ref in refs) == list(range(7))
    for ref in refs:
        rollout, summary = fetch(ref.ref), ref.summary
        assert (summary.step, summary.index, summary.policy_version) == (3, rollout.index, 5)
        assert len(rollout.prompt_ids) == rollout.index + 1
        assert summary.teacher == rollout.teacher == rollout.index % 3  # its prompt's
        assert summary.num_loss_tokens == len(rollout.completion_ids)
        assert summary.num_tokens == rollout.index + 1 + len(rollout.completion_ids)
        assert summary.is_cut == rollout.is_cut == (len(rollout.completion_ids) == settings.max_new_tokens)
    assert clock.tokens == {3: sum(ref.summary.num_loss_tokens for ref in refs)}


async def test_a_sequence_without_finite_scores_has_no_reference() -> None:
    def load() -> LoadedTeacher:
        class Scorer:
            def score(self, rollouts: Any) -> Any:
                logprobs = [np.zeros(len(r.completion_ids), np.float32) for r in rollouts]
                return [None if len(each) == 13 else SampledPayload(logprobs=each) for each in logprobs]

            hidden = score

        parts: Any = {"scorer": Scorer(), "spec": None}  # the latter is asked for by nobody without a cache
        return LoadedTeacher(**parts, cache=None)

    handles = [ray.remote(TeacherActor).options(num_cpus=0).remote(TeacherWorker(rank, load)) for rank in range(2)]
    teachers = PooledTeachers([Pool("teacher", handles)], RoleClock(), CacheCounts())
    lengths = [4, 13, 8, 21, 13]
    rollouts = [
        Rollout.from_data(
            Example(row=i, prompt_ids=np.zeros(2, np.int32), completion_ids=np.zeros(length, np.int32)),
            step=0,
            index=i,
        )
        for i, length in enumerate(lengths)
    ]
    scores = await teachers.score([RolloutRef(summary=each.summary, ref=ray.put(each)) for each in rollouts])
    assert [score and len(fetch(score.payload).logprobs) for score in scores] == [4, None, 8, 21, None]
    assert {score.scored for score in scores if score} == {Call(worker="teacher-0"), Call(worker="teacher-1")}


def controller(num_lost: int) -> Any:
    """Has steps of two rollouts whose payloads are lost at the first `num_lost` attempts; counts the attempts."""
    lost = lost_object()

    class Controller:
        def __init__(self) -> None:
            self.attempts: list[int] = []

        def batch(self, step: int, attempt: int) -> list[ScoredRef]:
            self.attempts.append(attempt)
            counts: Any = {"step": step, "num_tokens": 5, "num_loss_tokens": 3, "policy_version": None}
            return [
                ScoredRef(
                    rollout=RolloutRef(summary=RolloutSummary(index=index, **counts), ref=ray.put((index, attempt))),
                    payload=lost if attempt < num_lost else ray.put("payload"),
                )
                for index in range(2)
            ]

        def notes(self, version: int) -> tuple[tuple[EngineProbe, ...], int]:
            return (), 1

        def asked(self) -> list[int]:
            return self.attempts

    actor: Any = ray.remote(Controller)
    return actor.options(num_cpus=0).remote()


def test_a_step_that_is_lost_is_asked_for_anew() -> None:
    where = controller(num_lost=2)
    batch = ControllerFeed(where, rank=0, world_size=1).batch(7)
    assert [scored.rollout for scored in batch.share] == [(0, 2), (1, 2)]
    assert (batch.num_loss_tokens, batch.max_staleness) == (6, 1)
    assert ray.get(where.asked.remote()) == [0, 1, 2]


def test_a_learner_worker_drops_its_share_where_another_worker_lost_his() -> None:
    where = controller(num_lost=0)
    votes = iter([False, True])
    batch = ControllerFeed(where, rank=0, world_size=2, all_true=lambda flag: flag and next(votes)).batch(0)
    assert [scored.rollout for scored in batch.share] == [(0, 1)]
