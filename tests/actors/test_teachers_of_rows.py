"""Rollouts go to the actors of their rows' teachers and to no other, also where one of these dies. Without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from rayqd.actors.pool import Pool
from rayqd.actors.pooled import CacheCounts, PooledTeachers, RoleClock
from rayqd.pipeline import RolloutRef
from rayqd.teacher.worker import LoadedTeacher, TeacherWorker
from rayqd.types import Example, Rollout, SampledPayload

TEACHERS = [0, 1, 0, 1, 1, 0, 1]  # of the rollouts


class Scorer:
    def __init__(self, number: int) -> None:
        self._number = number

    def score(self, rollouts: Sequence[Rollout]) -> Any:
        return [SampledPayload(logprobs=np.full(r.num_loss_tokens, self._number, np.float32)) for r in rollouts]


def worker(teacher: int) -> TeacherWorker:
    scorer, spec = Scorer(teacher), None
    loaded: Any = LoadedTeacher(scorer=scorer, spec=spec, cache=None)  # pyright: ignore[reportArgumentType]
    return TeacherWorker(0, lambda: loaded, teacher=teacher)


class Actor:
    """Calls its worker as Ray would: at once, with a future of the report before the values."""

    def __init__(self, teacher: int, num_deaths: int = 0) -> None:
        self._worker = worker(teacher)
        self._num_deaths = num_deaths
        self.num_scored = 0

    def __getattr__(self, name: str) -> Any:
        return Method(getattr(self, f"do_{name}"))

    async def do_is_alive(self) -> bool:
        return True

    async def do_explain_exit(self) -> str:
        return ""

    async def do_load(self) -> float:
        return 0.0

    def do_score(self, *rollouts: Rollout) -> Any:
        report: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._num_deaths:
            self._num_deaths -= 1
            report.set_exception(ActorDiedError())
            return [report, *rollouts]
        done, payloads = self._worker.score(*rollouts)
        self.num_scored += len(payloads)
        report.set_result(done)
        return [report, *payloads]


class Method:
    def __init__(self, call: Any) -> None:
        self.remote = call

    def options(self, num_returns: int) -> Method:
        del num_returns
        return self


def rollout_refs() -> list[RolloutRef]:
    refs: list[RolloutRef] = []
    for index, teacher in enumerate(TEACHERS):
        ids = np.zeros(2 + index, np.int32)
        example = Example(row=index, prompt_ids=ids, completion_ids=ids, teacher=teacher)
        rollout: Any = Rollout.from_data(example, step=0, index=index)
        refs.append(RolloutRef(summary=rollout.summary, ref=rollout))
    return refs


async def test_each_teacher_scores_its_own_rows_and_a_death_moves_none_to_another() -> None:
    actors = [Actor(0, num_deaths=1), Actor(0), Actor(1, num_deaths=2)]
    handles: Any = actors
    pools = [Pool("teacher", handles[:2]), Pool("teacher", handles[2:], first_rank=2)]
    refs = rollout_refs()
    scores = await PooledTeachers(pools, RoleClock(), CacheCounts()).score(refs)
    for ref, score, teacher in zip(refs, scores, TEACHERS, strict=True):
        assert score is not None
        payload: Any = score.payload
        assert payload.logprobs.tolist() == [teacher] * ref.summary.num_loss_tokens
        assert score.scored.worker in (["teacher-0", "teacher-1"], ["teacher-2"])[teacher]
    assert [pool.num_retries for pool in pools] == [1, 2]
    assert [sum(actor.num_scored for actor in actors[:2]), actors[2].num_scored] == [3, 4]


def test_a_teacher_reads_no_row_of_another() -> None:
    own, *_ = [ref.ref for ref in rollout_refs() if ref.summary.teacher == 1]
    rollout: Any = own
    worker(1).score(rollout)
    with pytest.raises(AssertionError, match="another's teacher"):
        worker(0).score(rollout)
