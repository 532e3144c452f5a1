"""The parts of a run's time follow each other, and add up to all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayqd.runs.time_parts import StepTimes, round_parts


def test_parts_are_what_lies_between_start_first_step_last_step_and_end() -> None:
    times = StepTimes()
    times.add(110.0, work_seconds=3.0, wait_seconds=2.0)  # it began at 105
    times.add(120.0, work_seconds=4.0, wait_seconds=1.0)  # ten seconds later, of which it worked and waited five
    assert times.split(began=90.0, ended=127.5) == {
        "start": 15.0, "learner": 7.0, "waiting": 3.0, "between steps": 5.0, "end": 7.5,
    }  # fmt: skip


def test_a_run_without_a_step_has_no_parts() -> None:
    assert StepTimes().split(began=0.0, ended=9.0) is None


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=8))
def test_rounded_parts_add_up_to_the_rounded_total(seconds: list[float]) -> None:
    rounded = round_parts({str(i): value for i, value in enumerate(seconds)})
    assert sum(rounded.values()) == pytest.approx(sum(seconds), abs=0.051)
