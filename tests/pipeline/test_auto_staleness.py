"""`rollout.max_staleness = "auto"` in a run whose roles take known times, by a clock that nobody waits for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import mean
from typing import Any

import pytest

from rayqd.actors.staleness import Staleness
from rayqd.config import Config
from rayqd.data import Plan
from rayqd.pipeline import Pipeline, RolloutRef
from rayqd.runs.bottleneck import predict_step
from tests.example_events import step_event
from tests.pipeline.recorded import EXAMPLES, weights
from tests.pipeline.virtual_clock import TimedRollouts, TimedTeachers, now, run_at_once

PLAN = Plan(num_examples=(10,), batch_size=4, lmbda=1.0, seed=1)
CHOSEN_AFTER = 8  # steps


@dataclass(frozen=True)
class Ran:
    staleness: list[int]  # by step
    seconds: list[float]  # by step, from one to the next
    trained: list[tuple[int, int]]  # step and index of every sequence, in their order
    lines: list[str]


def ran(max_staleness: Any, rollout: float, teacher: float, learner: float, steps: range, **begin: Any) -> Ran:
    return run_at_once(_run(max_staleness, rollout, teacher, learner, steps, **begin))


async def _run(
    max_staleness: Any, rollout: float, teacher: float, learner: float, steps: range, chosen: int | None = None
) -> Ran:
    """Do what learner and controller do for `steps`."""

    async def quarantine(rollout: RolloutRef, reason: str) -> None:
        raise AssertionError(reason)

    config = Config.model_validate(
        {"rollout": {"max_staleness": max_staleness}, "distill": {"lmbda": 1.0}, "learner": {"steps": steps.stop}}
    )
    policy = Staleness(config, roles_share=False, store_bytes=1e9)
    pipeline = Pipeline(
        plan=PLAN,
        examples=EXAMPLES,
        num_steps=steps.stop,
        max_staleness=policy.bound,
        rollouts=TimedRollouts(rollout),
        teachers=TimedTeachers(teacher),
        put=lambda each: each,  # pyright: ignore[reportArgumentType]
        quarantine=quarantine,
    )
    done = Ran([], [], [], [policy.begin(chosen)])
    pipeline.allow_staleness(policy.bound)
    for step in steps:
        began = now()
        pipeline.publish(weights(step))
        batch = [scored.rollout.summary for scored in await pipeline.batch(step)]
        await asyncio.sleep(learner)
        done.staleness.append(step - min(each.policy_version or 0 for each in batch))
        done.trained.extend((each.step, each.index) for each in batch)
        done.seconds.append(round(now() - began, 6))
        times = {"rollout_seconds": rollout, "teacher_seconds": teacher, "learner_seconds": learner}
        done.lines.append(policy.add(step_event(step + 1, **times, payload_bytes=1000)))
        pipeline.allow_staleness(policy.bound)
    return done


CASES = [
    (1.0, 0.02, 0.01, 0),  # the others take next to nothing: nothing is won
    (2.0, 0.5, 3.0, 1),  # two steps on the way, 5.5 s, are enough for one every 3 s
    (3.6, 0.55, 2.15, 1),
    (1.0, 2.0, 1.9, 2),  # and 4.9 s not for one every 2 s
    (1.0, 1.0, 1.0, 2),
]


@pytest.mark.parametrize(("rollout", "teacher", "learner", "least"), CASES)
def test_it_is_the_least_at_which_a_step_takes_no_longer_than_its_slowest_role(
    rollout: float, teacher: float, learner: float, least: int
) -> None:
    auto = ran("auto", rollout, teacher, learner, range(24))
    assert auto.staleness == [min(max(0, step - CHOSEN_AFTER), least) for step in range(24)]
    assert auto.seconds[0] == pytest.approx(rollout + teacher + learner)
    slowest = max(rollout, teacher, learner)
    assert mean(auto.seconds[14:20]) <= 1.05 * slowest
    if least:
        assert mean(ran(least - 1, rollout, teacher, learner, range(24)).seconds[14:20]) > 1.05 * slowest


@pytest.mark.parametrize("max_staleness", range(4))
@pytest.mark.parametrize("times", [(3.6, 0.55, 2.15), (2.64, 3.18, 0.47), (1.0, 1.0, 1.0), (0.62, 3.4, 3.08)])
def test_a_step_takes_what_is_predicted(times: tuple[float, float, float], max_staleness: int) -> None:
    busy = dict(zip(("rollout", "teacher", "learner"), times, strict=True))
    seconds = ran(max_staleness, *times, range(60)).seconds[20:56]  # a multiple of the period of 2, 3 or 4 steps
    assert mean(seconds) == pytest.approx(predict_step(busy, max_staleness))


def test_every_planned_sequence_is_trained_once_and_the_line_says_what_was_measured() -> None:
    auto = ran("auto", 3.6, 0.55, 2.15, range(24))
    assert auto.trained == [(step, index) for step in range(24) for index in range(4)]
    assert [line for line in auto.lines if line] == [
        "rollout.max_staleness auto: 1 from step 9 on; rollout 3.6 s, teacher 0.55 s, learner 2.15 s make a step of "
        "6.3 s at 0, 3.6 s at 1, 3.6 s at 2"
    ]
    assert auto.lines[CHOSEN_AFTER]


def test_a_resumed_run_keeps_what_was_chosen_and_measures_nothing() -> None:
    resumed = ran("auto", 1.0, 0.02, 0.01, range(10, 24), chosen=1)  # which these times would not lead to
    assert resumed.staleness == [min(step - 10, 1) for step in range(10, 24)]
    assert [line for line in resumed.lines if line] == ["rollout.max_staleness auto: 1, as it was chosen before"]


def test_before_it_was_chosen_a_resumed_run_measures_anew() -> None:
    resumed = ran("auto", 2.0, 0.5, 3.0, range(4, 24))
    assert resumed.staleness == [min(max(0, step - 4 - CHOSEN_AFTER), 1) for step in range(4, 24)]
