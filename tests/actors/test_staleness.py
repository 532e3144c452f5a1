"""What `rollout.max_staleness = "auto"` comes to where running ahead would win nothing, or has no room."""

from __future__ import annotations

from typing import Any

import pytest

from rayqd.actors.staleness import Staleness
from rayqd.config import Config
from tests.example_events import step_event


def staleness(max_staleness: Any = "auto", num_workers: int = 1, steps: int = 100, **given: Any) -> Staleness:
    settings = {
        "rollout": {"max_staleness": max_staleness, "num_workers": num_workers},
        "distill": {"lmbda": 1.0},
        "learner": {"steps": steps},
    }
    return Staleness(Config.model_validate(settings), **{"roles_share": False, "store_bytes": 1e9} | given)


def measured(policy: Staleness, number: int = 8, **times: float) -> list[str]:
    given = {"rollout_seconds": 3.6, "teacher_seconds": 0.55, "learner_seconds": 2.15, "payload_bytes": 1e6} | times
    return [policy.add(step_event(step, **given)) for step in range(1, number + 1)]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"roles_share": True},
            "rollout.max_staleness auto: 0, as roles share what they compute on, which is no quicker for being asked "
            "at once",
        ),
        ({"steps": 8}, "rollout.max_staleness auto: 0, as the student writes for 8 steps, too few to measure first"),
    ],
)
def test_it_is_0_at_once_where_it_cannot_win_anything(given: dict[str, Any], line: str) -> None:
    policy = staleness(**given)
    assert policy.begin(None) == line
    assert (policy.bound, policy.chosen) == (0, 0)
    assert not any(measured(policy))


def test_a_number_is_what_it_says_and_nothing_is_chosen_or_told() -> None:
    policy = staleness(1, roles_share=True)
    assert not policy.begin(None)
    assert not any(measured(policy))
    assert (policy.bound, policy.chosen) == (1, None)


def test_steps_without_rollouts_and_those_that_compile_do_not_count() -> None:
    policy = staleness()
    policy.begin(None)
    assert not any(measured(policy, 20, rollout_seconds=0.0))
    assert not any(measured(policy, 2, learner_seconds=90.0))
    assert measured(policy, 6)[-1].startswith("rollout.max_staleness auto: 1 from step 7 on; rollout 3.6 s")


def test_the_seconds_of_a_role_are_those_of_one_of_its_workers() -> None:
    policy = staleness(num_workers=4)  # a step takes 1.0 + 1.0 + 1.0 s, and not 4.0 + 1.0 + 1.0
    policy.begin(None)
    measured(policy, rollout_seconds=4.0, teacher_seconds=1.0, learner_seconds=1.0)
    assert policy.chosen == 2


@pytest.mark.parametrize(
    ("payload_bytes", "prefetch_steps", "chosen"), [(1e8, 0, 2), (1e8, 3, 1), (2e8, 0, 1), (6e8, 0, 0)]
)
def test_payloads_of_the_steps_on_the_way_fill_at_most_half_of_the_object_store(
    payload_bytes: float, prefetch_steps: int, chosen: int
) -> None:
    policy = staleness(store_bytes=1e9, prefetch_steps=prefetch_steps)  # 5e8 for (chosen + 1 + prefetched) steps
    policy.begin(None)
    line = measured(policy, teacher_seconds=3.0, learner_seconds=3.0, payload_bytes=payload_bytes)[-1]
    assert policy.chosen == chosen
    assert ("GB of payloads on the way, and Ray's object store of 1 GB" in line) == (chosen < 2)
