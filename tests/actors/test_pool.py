"""Calls that survive their actor, and what becomes of objects that do not, on real Ray actors."""

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
from rayqd.errors import DataError, WorkerError
from rayqd.pipeline import LostError, RolloutRef, ScoredRef

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def worker_class() -> type:
    """Defined in a function, so that it travels by value: Ray's workers cannot import a test."""

    class Worker:
        def start(self) -> None:
            time.sleep(2)

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


def pool(count: int = 1, *, max_restarts: int = -1, heard: list[str] | None = None) -> Pool:
    """Its notices are added to `heard`."""
    actor: Any = ray.remote(worker_class())
    actors = [actor.options(num_cpus=0, max_restarts=max_restarts).remote() for _ in range(count)]

    async def notice(text: str) -> None:
        if heard is not None:
            heard.append(text)

    return Pool("rollout", actors, notice=notice)


async def test_every_return_value_is_an_object_of_its_own() -> None:
    refs = await pool().call("echo", 4, num_returns=2)
    assert ray.get(refs) == [4, 40]


async def test_work_of_a_dead_actor_is_done_by_its_next_life(tmp_path: Path) -> None:
    workers = pool()
    refs = await workers.call("die_until", str(tmp_path / "marker"), 1, num_returns=2)
    assert ray.get(refs) == [2, "alive"]
    assert workers.num_retries == 1


async def test_work_that_kills_every_life_ends_with_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="rollout-0 died 3 times at the same work"):
        await pool().call("die_until", str(tmp_path / "marker"), 99, num_returns=2)


async def test_an_error_of_ours_comes_back_as_it_was_and_is_not_tried_again() -> None:
    workers = pool()
    with pytest.raises(DataError, match=r"^rows.jsonl:3: no messages$"):
        await workers.call("refuse", num_returns=2)
    assert workers.num_retries == 0


async def test_any_other_error_names_the_worker_and_the_error() -> None:
    with pytest.raises(WorkerError, match=r"^rollout-0 failed: ZeroDivisionError: a bug$"):
        await pool().call("crash", num_returns=2)


async def test_an_actor_that_stays_away_is_asked_for_nothing_more(tmp_path: Path) -> None:
    workers = pool(2, max_restarts=0)
    assert ray.get(await workers.call("die_until", str(tmp_path / "marker"), 1, num_returns=2)) == [2, "alive"]
    for number in range(5):
        assert ray.get(await workers.call("echo", number, num_returns=2)) == [number, 10 * number]
    assert workers.num_retries == 1


async def test_work_that_nobody_comes_back_for_ends_with_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="every rollout worker has died for good: "):
        await pool(max_restarts=0).call("die_until", str(tmp_path / "marker"), 99, num_returns=2)


async def test_a_death_is_told_once_whatever_was_in_flight_and_so_is_that_the_engine_is_there_again(
    tmp_path: Path,
) -> None:
    heard: list[str] = []
    workers = pool(heard=heard)
    calls = [workers.call("die_until", str(tmp_path / "marker"), 1, num_returns=2)]
    calls += [workers.call("echo", number, num_returns=2) for number in range(3)]
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
    await workers.call("die_until", str(tmp_path / "marker"), 1, num_returns=2)
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
        await workers.call("echo", lost_object(), num_returns=2)
    assert workers.num_retries == 0


def controller(num_lost: int) -> Any:
    """Has steps of two rollouts whose payloads are lost at the first `num_lost` attempts; counts the attempts."""
    lost = lost_object()

    class Controller:
        def __init__(self) -> None:
            self.attempts: list[int] = []

        def batch(self, step: int, attempt: int) -> list[ScoredRef]:
            self.attempts.append(attempt)
            return [
                ScoredRef(
                    rollout=RolloutRef(
                        step=step,
                        index=index,
                        num_tokens=5,
                        num_loss_tokens=3,
                        policy_version=None,
                        rollout=ray.put((index, attempt)),
                    ),
                    payload=lost if attempt < num_lost else ray.put("payload"),
                )
                for index in range(2)
            ]

        def asked(self) -> list[int]:
            return self.attempts

    actor: Any = ray.remote(Controller)
    return actor.options(num_cpus=0).remote()


def test_a_step_that_is_lost_is_asked_for_anew() -> None:
    where = controller(num_lost=2)
    batch = ControllerFeed(where, rank=0, world_size=1).batch(7)
    assert [scored.rollout for scored in batch.share] == [(0, 2), (1, 2)]
    assert batch.num_loss_tokens == 6
    assert ray.get(where.asked.remote()) == [0, 1, 2]


def test_a_learner_worker_drops_its_share_where_another_worker_lost_his() -> None:
    where = controller(num_lost=0)
    votes = iter([False, True])
    batch = ControllerFeed(where, rank=0, world_size=2, all_true=lambda flag: flag and next(votes)).batch(0)
    assert [scored.rollout for scored in batch.share] == [(0, 1)]
