"""How often learner and controller may die: without end while the run gets on, a few times where it does not."""

import pytest

from rayqd.driver.restarts import Restarts
from rayqd.errors import DeathError, HangError, WorkerError

LEARNER = DeathError("the learner died: its process is gone")
CONTROLLER = DeathError("the controller did not answer for 300 s: its stacks are in Ray's logs")


def test_deaths_with_a_new_step_between_are_survived_without_end() -> None:
    restarts = Restarts(1)
    for step in range(100):
        restarts.allow(LEARNER, step)
    restarts.count("rollout-1")
    assert restarts.deaths == {"learner": 100, "rollout-1": 1}


def test_deaths_at_the_same_step_end_the_run_with_what_was_said_last() -> None:
    restarts = Restarts(2)
    restarts.allow(LEARNER, 7)
    restarts.allow(CONTROLLER, 5)  # on the way back to step 7: no new step
    death = DeathError(str(LEARNER))
    death.add_note("Segmentation fault")
    with pytest.raises(
        WorkerError,
        match=r"^the learner died: its process is gone, 3 times with no new step between; its last words: Segmentation "
        r"fault; the same command goes on from the last checkpoint$",
    ):
        restarts.allow(death, 7)
    assert restarts.deaths == {"learner": 1, "controller": 1}


def test_work_that_stands_still_a_second_time_ends_the_run_whatever_was_done_between() -> None:
    restarts = Restarts(3)
    hang = HangError("learner-0 ended no microbatch for ray.stall_seconds=300, at a.py:1 f")
    restarts.allow(hang, 7)
    restarts.allow(LEARNER, 70)
    with pytest.raises(WorkerError, match=r"^learner-0 ended no microbatch .*, and it did so before it was started"):
        restarts.allow(hang, 700)


def test_none_is_allowed_at_zero() -> None:
    with pytest.raises(WorkerError, match=r"^the learner died: its process is gone; the same command goes on"):
        Restarts(0).allow(LEARNER, 3)
