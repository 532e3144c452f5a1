"""The start-up table counts from the command, and knows what lies before the first step and after the last."""

from typing import Any

from rayqd.runs.startup import Startup, list_innermost, make_startup
from rayqd.spans import Span


def a_span(role: str, name: str, start: float, end: float) -> Span:
    return Span(role=role, name=name, start=start, end=end)


# A command given at 1000 that ended at 1100, with steps done at 1040, 1060 and 1090.
SPANS = [
    a_span("rollout-0", "engine", 1010.0, 1035.0),
    a_span("rollout-0", "load model", 1012.0, 1015.0),
    a_span("driver", "start Ray", 1002.0, 1008.0),
    a_span("learner", "first step", 1036.0, 1040.0),
    a_span("learner", "export", 1091.0, 1094.0),
]


def table(**changed: Any) -> Startup:
    usual: dict[str, Any] = {"began": 1000.0, "step_times": [1040.0, 1060.0, 1090.0], "spans": SPANS, "end": 1100.0}
    return make_startup(**(usual | changed))


def test_times_count_from_the_command_and_spans_are_in_the_order_in_which_they_began() -> None:
    startup = table()
    assert (startup.first_step, startup.last_step, startup.end) == (40.0, 90.0, 100.0)
    assert [(s.name, s.start, s.end) for s in startup.spans] == [
        ("start Ray", 2.0, 8.0), ("engine", 10.0, 35.0), ("load model", 12.0, 15.0), ("first step", 36.0, 40.0),
        ("export", 91.0, 94.0),
    ]  # fmt: skip


def test_what_lies_before_the_first_step_and_after_the_last() -> None:
    startup = table()
    assert [s.name for s in startup.before] == ["start Ray", "engine", "load model", "first step"]
    assert [s.name for s in startup.after] == ["export"]


def test_a_run_without_steps_has_all_before_and_nothing_after() -> None:
    startup = table(step_times=[])
    assert startup.first_step is startup.last_step is None
    assert len(startup.before) == len(SPANS)
    assert startup.after == []


def test_a_span_that_holds_another_one_of_its_role_is_not_innermost() -> None:
    spans = [*SPANS, a_span("learner", "process", 1010.0, 1035.0)]  # as long as the other role's engine
    assert [s.name for s in list_innermost(spans)] == ["process", "start Ray", "first step", "load model", "export"]
