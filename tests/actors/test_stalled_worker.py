"""A worker that makes no progress is told of, started again once, and ends the run the second time."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rayqd.actors.pool import Pool
from rayqd.actors.ray_types import fetch, put
from rayqd.actors.workers import RolloutActor, TeacherActor
from rayqd.config.sections import RolloutConfig
from rayqd.errors import WorkerError
from rayqd.pipeline import Weights
from rayqd.rollout.engine import Completion, SamplingRequest
from rayqd.rollout.fake import FakeEngine
from rayqd.rollout.sampling import SamplingRules
from rayqd.rollout.worker import RolloutWorker
from rayqd.teacher.worker import LoadedTeacher, TeacherWorker
from rayqd.types import Example, HiddenPayload, PlannedSequence, Rollout, SampledPayload, TeacherPayload

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STALL_SECONDS = 1.5


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def pool(times: int, marker: Path, heard: list[str]) -> Pool[RolloutActor]:
    """A worker whose engine stands still the first `times` that it writes, counted in a file that outlives it."""

    class Standing(FakeEngine):
        def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
            with marker.open("a") as stream:
                stream.write("x")
            if marker.stat().st_size <= times:
                self.stand_still()
            return super().generate(requests)

        def stand_still(self) -> None:
            time.sleep(600)

    def make_engine() -> FakeEngine:
        time.sleep(2 * STALL_SECONDS)  # starting does not count
        return Standing(vocab_size=50)

    async def notice(text: str, died: str = "") -> None:
        heard.append(text)

    worker = RolloutWorker(0, make_engine, fetch, stall_seconds=STALL_SECONDS)
    actor: Any = ray.remote(RolloutActor).options(num_cpus=0, max_restarts=-1, name=f"rayqd/stalled-{times}/rollout-0")
    return Pool("rollout", [actor.remote(worker)], notice=notice)


async def write(workers: Pool[RolloutActor]) -> int:
    sequence = PlannedSequence(step=0, index=0, example=0, on_policy=True, seed=7)
    prompt = Example(row=0, prompt_ids=np.arange(3, dtype=np.int32), completion_ids=np.arange(2, dtype=np.int32))
    weights = Weights(version=0, tensors=put({}))
    rules = SamplingRules(settings=RolloutConfig(min_new_tokens=2, max_new_tokens=4))
    report, _, _ = await workers.call(RolloutActor.write, 1, [sequence], [prompt], weights, rules)
    return report.rollouts[0].num_loss_tokens


async def test_it_is_told_of_and_its_work_is_done_again(tmp_path: Path) -> None:
    heard: list[str] = []
    assert await write(pool(1, tmp_path / "marker", heard)) in range(2, 5)
    (told,) = [line for line in heard if "no token" in line]
    assert told.startswith("rollout-0 made no token for ray.stall_seconds=1.5, at test_stalled_worker.py:")
    assert " stand_still, test_stalled_worker.py:" in told
    assert ", worker.py:" in told


async def test_one_that_is_stopped_as_a_whole_is_ended_and_its_work_is_done_again(tmp_path: Path) -> None:
    heard: list[str] = []
    marker = tmp_path / "marker"

    class Writing(FakeEngine):  # in a function, so that it travels by value
        def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
            is_first = not marker.exists()
            marker.write_text(str(os.getpid()))
            if is_first:
                time.sleep(600)
            return super().generate(requests)

    def make_engine() -> FakeEngine:
        return Writing(vocab_size=50)

    async def notice(text: str, died: str = "") -> None:
        heard.append(text)

    worker = RolloutWorker(0, make_engine, fetch)  # which itself waits for ever
    actor: Any = ray.remote(RolloutActor).options(num_cpus=0, max_restarts=-1, name="rayqd/stopped/rollout-0")
    workers = Pool("rollout", [actor.remote(worker)], notice=notice, stall_seconds=STALL_SECONDS)
    working = asyncio.create_task(write(workers))
    while not marker.exists():
        await asyncio.sleep(0.05)
    await asyncio.sleep(3 * STALL_SECONDS)  # slow, and not stopped: nobody minds
    assert (heard, working.done()) == ([], False)
    stopped = int(marker.read_text())
    os.kill(stopped, signal.SIGSTOP)
    assert await working in range(2, 5)
    assert heard[0].startswith("rollout-0 gave no sign of life for ray.stall_seconds=1.5: its process is stopped, ")
    assert heard[0].endswith(" Ray's logs; it is ended")
    assert not Path(f"/proc/{stopped}").exists()


def teachers(times: int, marker: Path, heard: list[str]) -> Pool[TeacherActor]:
    """A teacher that stands still the first `times` that it reads something that is not its process's first batch."""

    class Standing:
        on_progress: Callable[[], None]
        num_calls = 0

        def score(self, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
            self.num_calls += 1
            if self.num_calls > 1:  # the first one may compile
                with marker.open("a") as stream:
                    stream.write("x")
                if marker.stat().st_size <= times:
                    self.stand_still()
            self.on_progress()
            return [SampledPayload(logprobs=np.zeros(len(r.completion_ids), np.float32)) for r in rollouts]

        def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]:
            raise AssertionError(rollouts)

        def stand_still(self) -> None:
            time.sleep(600)

    def load() -> LoadedTeacher:
        spec: Any = None  # asked for by nobody without a cache
        return LoadedTeacher(scorer=Standing(), spec=spec, cache=None)

    async def notice(text: str, died: str = "") -> None:
        heard.append(text)

    worker = TeacherWorker(0, load, STALL_SECONDS)
    actor: Any = ray.remote(TeacherActor).options(num_cpus=0, max_restarts=-1, name=f"rayqd/stalled-{times}/teacher-0")
    return Pool("teacher", [actor.remote(worker)], notice=notice)


async def score(pool: Pool[TeacherActor]) -> int:
    """Score twice; only the second call is watched."""
    ids = np.arange(3, dtype=np.int32)
    rollout = Rollout(step=0, index=0, on_policy=True, prompt_ids=ids, completion_ids=ids, policy_version=0)
    await pool.call(TeacherActor.score, 1, rollout)
    report, _, scored = await pool.call(TeacherActor.score, 1, rollout)
    assert report.num_tokens == 6
    return scored.attempt


async def test_a_teacher_that_stands_still_is_told_of_and_its_work_is_done_again(tmp_path: Path) -> None:
    heard: list[str] = []
    assert await score(teachers(1, tmp_path / "marker", heard)) == 2
    (told,) = [line for line in heard if "no batch" in line]
    assert told.startswith("teacher-0 read no batch for ray.stall_seconds=1.5, at test_stalled_worker.py:")
    assert " stand_still, test_stalled_worker.py:" in told


async def test_the_second_time_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    heard: list[str] = []
    with pytest.raises(WorkerError, match=r"^rollout-0 made no token for ray.stall_seconds=1.5, at .* stand_still"):
        await write(pool(9, tmp_path / "marker", heard))
    assert (tmp_path / "marker").stat().st_size == 2
