"""What the data gives to later steps is scored ahead of them, and no step is another for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from rayqd.errors import WorkerError
from rayqd.pipeline import LostError, RolloutRef
from tests.pipeline.recorded import make, train, weights


@pytest.mark.parametrize("lmbda", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_every_step_is_what_it_is_without_and_nothing_is_scored_twice(lmbda: float, max_staleness: int) -> None:
    asked, _ = make(lmbda, max_staleness)
    ahead, log = make(lmbda, max_staleness, prefetch_steps=2)
    for one, other in zip(await train(asked, range(6)), await train(ahead, range(6)), strict=True):
        assert [(s.rollout.summary, s.payload[0], s.scored) for s in one] == [
            (s.rollout.summary, s.payload[0], s.scored) for s in other
        ]
        assert all(s.payload == ("payload", s.rollout.ref) for s in other)
    scored = [entry[1:] for entry in log if entry[0] == "score"]
    assert len(scored) == len(set(scored))


async def test_scores_are_there_before_the_learner_asks_and_no_further_ahead_than_said() -> None:
    pipeline, log = make(lmbda=0.0, prefetch_steps=2)
    await pipeline.batch(0)
    await asyncio.sleep(0.01)
    assert [entry[1] for entry in log] == [0, 1, 2]
    await pipeline.batch(1)
    assert [entry[1] for entry in log] == [0, 1, 2]


async def test_the_step_that_the_learner_waits_for_comes_first() -> None:
    pipeline, log = make(lmbda=0.5, prefetch_steps=1)
    pipeline._rollouts.gate.clear()
    pipeline.publish(weights(0))
    waiting = asyncio.create_task(pipeline.batch(0))
    await asyncio.sleep(0.01)
    assert not [entry for entry in log if entry[0] == "score"]
    pipeline._rollouts.gate.set()
    await waiting
    await asyncio.sleep(0.01)
    assert [entry[1] for entry in log if entry[0] == "score"] == [0, 1]


async def test_a_learner_back_at_a_checkpoint_gets_every_step_anew() -> None:
    pipeline, log = make(lmbda=0.5, prefetch_steps=2)
    await train(pipeline, range(3))
    await asyncio.sleep(0.01)
    del log[:]
    batches = await train(pipeline, range(1, 3))
    assert {entry[1] for entry in log if entry[0] == "score"} >= {1, 2}
    versions = [{s.rollout.summary.policy_version for s in batch} for batch in batches]
    assert versions == [{None, 1}, {None, 2}]


async def test_scores_that_are_lost_ahead_of_time_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, log = make(lmbda=0.0, prefetch_steps=2)
    score = pipeline._teachers.score
    lost = {1, 2}

    async def lose_once(rollouts: Sequence[RolloutRef]) -> list[Any]:
        step = rollouts[0].summary.step
        if step in lost:
            lost.remove(step)
            raise LostError("an argument of score")
        return await score(rollouts)

    monkeypatch.setattr(pipeline._teachers, "score", lose_once)
    batches = [await pipeline.batch(step) for step in range(3)]
    assert [[s.rollout.summary.index for s in batch] for batch in batches] == [[0, 1, 2, 3]] * 3
    assert not lost
    assert [entry[1] for entry in log].count(1) == 1


async def test_a_teacher_that_fails_ahead_of_time_is_told_when_the_step_is_asked_for() -> None:
    pipeline, _ = make(lmbda=0.0, prefetch_steps=2)
    pipeline._teachers.unscored = {(2, index) for index in range(4)}
    for step in range(2):
        await pipeline.batch(step)
    await asyncio.sleep(0.01)
    with pytest.raises(WorkerError, match="no sequence of step 3 can be trained on: the teacher computed inf or nan"):
        await pipeline.batch(2)
