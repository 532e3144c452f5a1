"""The loop with recording fakes: no Ray, no torch, milliseconds."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayqd.audit import DATA, Call
from rayqd.data import Plan
from rayqd.errors import WorkerError
from rayqd.pipeline import LostError, RolloutRef
from rayqd.types import Example, Rollout
from tests.pipeline.recorded import TEACHER, make, train, weights


async def test_strictly_on_policy_rollouts_are_written_by_exactly_the_step_s_weights() -> None:
    pipeline, log = make(max_staleness=0)
    await train(pipeline, range(6))
    assert [entry for entry in log if entry[0] == "write"] == [("write", s, s) for s in range(6)]


@pytest.mark.parametrize("max_staleness", [1, 2, 3])
async def test_staleness_reaches_its_bound_and_never_passes_it(max_staleness: int) -> None:
    pipeline, _ = make(lmbda=1.0, max_staleness=max_staleness, num_steps=8)
    batches = await train(pipeline, range(8))
    staleness = [s - min(r.rollout.summary.policy_version for r in batch) for s, batch in enumerate(batches)]
    # At the first demand steps 0..k start with version 0, and from then on one more step at each demand.
    assert staleness == [min(step, max_staleness) for step in range(8)]


async def test_every_planned_sequence_is_in_its_step_s_batch_once_and_in_order() -> None:
    pipeline, _ = make()
    batches = await train(pipeline, range(6))
    assert [[r.rollout.summary.index for r in batch] for batch in batches] == [[0, 1, 2, 3]] * 6
    plan = Plan(num_examples=(10,), batch_size=4, lmbda=0.5, seed=1)
    for step, batch in enumerate(batches):
        for planned, scored in zip(plan.step(step), batch, strict=True):
            assert (scored.rollout.summary.policy_version is not None) == planned.on_policy
            assert scored.payload == ("payload", scored.rollout.ref)
            if planned.on_policy:
                assert scored.rollout.ref == ("written", step, planned.index, planned.seed, planned.example)


async def test_no_work_is_started_beyond_the_bound() -> None:
    pipeline, log = make(max_staleness=1)
    await train(pipeline, range(1))
    await asyncio.sleep(0.01)
    assert {entry[1] for entry in log} == {0, 1}


async def test_asking_again_for_a_step_starts_no_work_twice() -> None:
    pipeline, log = make(lmbda=1.0)
    pipeline.publish(weights(0))
    first, second = await asyncio.gather(pipeline.batch(0), pipeline.batch(0))
    assert [r.rollout.ref for r in first] == [r.rollout.ref for r in second]
    assert log.count(("write", 0, 0)) == 1


async def test_a_learner_back_at_a_checkpoint_gets_rollouts_of_its_own_weights() -> None:
    pipeline, log = make(lmbda=1.0, max_staleness=2)
    await train(pipeline, range(4))
    pipeline.publish(weights(2))
    batch = await pipeline.batch(2)
    assert {r.rollout.summary.policy_version for r in batch} == {2}
    assert log[-2][0] == "write"


async def test_without_rollouts_nothing_is_written() -> None:
    pipeline, log = make(lmbda=0.0)
    await train(pipeline, range(6))
    assert {entry[0] for entry in log} == {"score"}


async def test_a_failed_rollout_reaches_the_learner() -> None:
    pipeline, _ = make(lmbda=1.0)

    async def fail(*_: Any) -> list[RolloutRef]:
        raise RuntimeError("engine lost")

    pipeline._rollouts.write = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="engine lost"):
        await train(pipeline, range(1))


async def test_heldout_rows_are_scored_as_they_stand() -> None:
    pipeline, _ = make()
    rows = [
        Example(row=i, prompt_ids=np.full(2, i, np.int32), completion_ids=np.full(5, i, np.int32)) for i in range(3)
    ]
    scored: list[Any] = await pipeline.heldout(rows)
    assert [s.rollout.summary.num_loss_tokens for s in scored] == [5, 5, 5]
    assert {s.payload[0] for s in scored} == {"hidden"}
    rollouts: list[Rollout] = [s.rollout.ref for s in scored]
    assert all(np.array_equal(r.completion_ids, row.completion_ids) for r, row in zip(rollouts, rows, strict=True))


async def test_a_learner_worker_that_asks_first_waits_until_another_has_published() -> None:
    pipeline, log = make(lmbda=1.0)
    await train(pipeline, range(1))
    early = asyncio.create_task(pipeline.batch(1))
    await asyncio.sleep(0.01)
    assert ("write", 1, 0) not in log
    pipeline.publish(weights(1))
    assert {r.rollout.summary.policy_version for r in await early} == {1}


async def test_what_the_teacher_has_no_numbers_for_is_left_out_and_told() -> None:
    pipeline, log = make()
    pipeline._teachers.unscored = {(1, 2), (3, 0), (3, 1)}
    batches = await train(pipeline, range(6))
    assert [[r.rollout.summary.index for r in batch] for batch in batches] == [
        [0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3], [2, 3], [0, 1, 2, 3], [0, 1, 2, 3],
    ]  # fmt: skip
    assert [entry[1:] for entry in log if entry[0] == "quarantine"] == [
        (step, index, "the teacher computed inf or nan") for step, index in [(1, 2), (3, 0), (3, 1)]
    ]


async def test_what_an_engine_wrote_against_its_orders_is_never_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, log = make(lmbda=1.0)
    write = pipeline._rollouts.write

    async def write_nothing(*args: Any) -> list[RolloutRef]:
        refs = await write(*args)
        faulty = replace(refs[1].summary, fault="the engine wrote nothing") if args[0][0].step == 2 else refs[1].summary
        return [refs[0], replace(refs[1], summary=faulty), *refs[2:]]

    monkeypatch.setattr(pipeline._rollouts, "write", write_nothing)
    pipeline._teachers.unscored = {(2, 3)}
    batches = await train(pipeline, range(4))
    assert [[s.rollout.summary.index for s in batch] for batch in batches] == [[0, 1, 2, 3]] * 2 + [
        [0, 2],
        [0, 1, 2, 3],
    ]
    assert all(s.payload == ("payload", s.rollout.ref) for batch in batches for s in batch)
    assert [entry[1:] for entry in log if entry[0] == "quarantine"] == [
        (2, 1, "the engine wrote nothing"),
        (2, 3, "the teacher computed inf or nan"),
    ]


async def test_a_step_without_any_payload_ends_the_run() -> None:
    pipeline, _ = make()
    pipeline._teachers.unscored = {(2, index) for index in range(4)}
    with pytest.raises(WorkerError, match="no sequence of step 3 can be trained on: the teacher computed inf or nan"):
        await train(pipeline, range(6))


async def test_a_lost_step_is_made_anew_once_for_all_learner_workers_that_ask() -> None:
    pipeline, log = make()
    pipeline.publish(weights(0))
    first = await pipeline.batch(0)
    again, for_the_other_worker = await asyncio.gather(pipeline.batch(0, 1), pipeline.batch(0, 1))
    assert [entry[:2] for entry in log] == [("write", 0), ("score", 0)] * 2
    assert again == for_the_other_worker == first
    assert await pipeline.batch(0, 1) == first
    assert len(log) == 4


async def test_a_step_whose_rollouts_are_lost_before_they_are_scored_is_written_again() -> None:
    pipeline, log = make()
    teachers = pipeline._teachers
    losses = 2

    class TeachersOnNodesThatGo:
        async def score(self, rollouts: Sequence[RolloutRef]) -> list[Any]:
            nonlocal losses
            losses -= 1
            if losses >= 0:
                raise LostError("an argument of score")
            return await teachers.score(rollouts)

    pipeline._teachers = TeachersOnNodesThatGo()
    pipeline.publish(weights(0))
    batch = await pipeline.batch(0)
    assert [ref.rollout.summary.index for ref in batch] == [0, 1, 2, 3]
    assert [entry[:2] for entry in log] == [("write", 0)] * 3 + [("score", 0)]


async def test_a_step_that_is_lost_every_time_ends_the_run() -> None:
    pipeline, _ = make()

    async def lose(*_: Any, **__: Any) -> list[Any]:
        raise LostError("an argument of score")

    pipeline._teachers.score = lose
    pipeline.publish(weights(0))
    with pytest.raises(WorkerError, match="step 1 was lost with its node 5 times"):
        await pipeline.batch(0)


async def test_a_learner_that_starts_again_at_the_same_step_gets_it_made_anew() -> None:
    pipeline, log = make()
    for _ in range(2):
        pipeline.publish(weights(0))
        await pipeline.batch(0)
    assert [entry for entry in log if entry[0] == "write"] == [("write", 0, 0)] * 2


async def test_a_step_that_the_student_writes_nothing_of_waits_for_no_weights() -> None:
    pipeline, log = make(lmbda=0.05)  # 0.2 of 4 sequences a step: the third step has the first
    for step in range(2):
        await asyncio.wait_for(pipeline.batch(step), 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pipeline.batch(2), 0.01)
    pipeline.publish(weights(2))
    await pipeline.batch(2)
    await pipeline.batch(3)  # version 3 is never published
    assert [entry for entry in log if entry[0] == "write"] == [("write", 2, 2)]


async def test_each_sequence_says_which_row_of_the_plan_it_is_and_who_made_it() -> None:
    pipeline, _ = make(lmbda=0.0)
    (batch,) = await train(pipeline, range(1))
    planned = Plan(num_examples=(10,), batch_size=4, lmbda=0.0, seed=1).step(0)
    assert [scored.rollout.summary.example for scored in batch] == [sequence.example for sequence in planned]
    assert {(scored.rollout.wrote, scored.scored) for scored in batch} == {(Call(worker=DATA), TEACHER)}
    assert [scored.rollout.summary.tokens for scored in batch] == [scored.rollout.ref.digest for scored in batch]
    heldout = await pipeline.heldout(
        [Example(row=0, prompt_ids=np.zeros(2, np.int32), completion_ids=np.zeros(2, np.int32))]
    )
    assert [scored.rollout.summary.example for scored in heldout] == [-1]
