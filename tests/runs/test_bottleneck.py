"""What limits a run's steps, and where nothing can be said of it."""

from __future__ import annotations

from typing import Any

import pytest

from rayqd.config import Config
from rayqd.runs.bottleneck import find_bottleneck, predict_step
from tests.example_events import step_event


def config(**rollout: Any) -> Config:
    return Config.model_validate({"rollout": rollout, "distill": {"lmbda": 1.0}})


def steps(rollout: float, teacher: float, learner: float, wait: float, number: int = 8) -> list[Any]:
    times = {"rollout_seconds": rollout, "teacher_seconds": teacher, "learner_seconds": learner, "wait_seconds": wait}
    first = step_event(1, **{**times, "learner_seconds": 90.0})  # compiles
    return [first, *(step_event(step, **times) for step in range(2, number + 1))]


def test_a_step_ahead_is_proposed_where_rollouts_and_learner_take_turns() -> None:
    found = find_bottleneck(steps(rollout=3.6, teacher=0.6, learner=2.2, wait=5.0), config(), num_gpus=4)
    assert found
    assert (found.role, found.setting) == ("rollout", "rollout.max_staleness = 1")
    assert found.step_seconds == pytest.approx(7.2)
    assert found.would_be == pytest.approx(3.6)
    assert found.sentence == (
        "rollout, at work for 50% of the 7.2 s that a step takes; with rollout.max_staleness = 1 a step would take "
        "3.6 s at best"
    )


def test_what_is_at_work_all_the_time_gets_another_worker() -> None:
    found = find_bottleneck(steps(3.6, 0.2, 1.0, 2.8), config(max_staleness=2), num_gpus=4)
    assert found
    assert (found.setting, found.would_be) == ("rollout.num_workers = 2", pytest.approx(1.8))
    found = find_bottleneck(steps(3.6, 0.2, 1.0, 2.8), config(max_staleness=2, tensor_parallel=2), num_gpus=5)
    assert found
    assert found.setting == "rollout.num_workers = 2 and 1 more GPU"
    off_policy = Config.model_validate({"distill": {"lmbda": 0.0}})
    found = find_bottleneck(steps(0.0, 0.5, 3.0, 0.02), off_policy, num_gpus=2)
    assert found
    assert (found.role, found.would_be) == ("learner", pytest.approx(1.5))
    assert found.setting == "learner.num_workers = 2 and 1 more GPU"


def test_running_ahead_is_not_proposed_to_a_payload_that_needs_the_student_s_newest_text() -> None:
    sampled = Config.model_validate({"distill": {"lmbda": 1.0, "beta": 1.0}, "teacher": {"payload": "sampled"}})
    found = find_bottleneck(steps(3.6, 0.6, 2.2, 5.0), sampled, num_gpus=4)
    assert found
    assert found.setting == "rollout.num_workers = 2"


def test_nothing_is_said_of_roles_that_share_what_they_compute_on_or_of_few_steps() -> None:
    assert find_bottleneck(steps(3.6, 0.6, 2.2, 5.0), config(), num_gpus=0) is None
    assert find_bottleneck(steps(3.6, 0.6, 2.2, 5.0), config(), num_gpus=2) is None
    assert find_bottleneck(steps(3.6, 0.6, 2.2, 5.0, number=4), config(), num_gpus=4) is None


def test_nothing_is_proposed_where_it_would_gain_next_to_nothing() -> None:
    found = find_bottleneck(steps(1.0, 0.98, 1.0, 0.0), config(max_staleness=2), num_gpus=3)
    assert found
    assert found.setting is None
    assert found.sentence == "rollout, at work for 100% of the 1.0 s that a step takes"


@pytest.mark.parametrize(("max_staleness", "seconds"), [(0, 9.0), (1, 4.5), (2, 4.0), (3, 4.0)])
def test_the_parts_of_a_step_lie_behind_or_beside_each_other(max_staleness: int, seconds: float) -> None:
    assert predict_step({"rollout": 4.0, "teacher": 2.0, "learner": 3.0}, max_staleness) == seconds


def test_of_auto_the_steps_since_it_chose_are_judged_and_no_other_staleness_is_proposed() -> None:
    before = steps(3.6, 0.6, 2.2, 4.2)
    after = [step_event(9 + i, **TIMES, max_staleness=1) for i in range(5)]
    found = find_bottleneck([*before, *after], config(max_staleness="auto"), num_gpus=4)
    assert found
    assert found.step_seconds == pytest.approx(4.2)
    assert (found.setting, found.would_be) == ("rollout.num_workers = 2", pytest.approx(2.3))


TIMES = {"rollout_seconds": 3.6, "teacher_seconds": 0.6, "learner_seconds": 2.2, "wait_seconds": 2.0}
