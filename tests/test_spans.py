"""A process's spans are handed on once, under the role that it turned out to have."""

import time

import psutil
import pytest

from rayqd.spans import process_start, record_span, span, start_clock, take_spans


@pytest.fixture(autouse=True)
def _nothing_recorded() -> None:
    take_spans("")


def test_spans_are_taken_once_in_the_order_of_their_start_the_outer_one_first() -> None:
    before = time.time()
    with span("outer"), span("inner"):
        pass
    record_span("earlier", 1.0, 2.5)
    spans = take_spans("learner")
    assert [s.name for s in spans] == ["earlier", "outer", "inner"]
    assert {s.role for s in spans} == {"learner"}
    assert spans[0].seconds == 1.5
    assert before <= spans[1].start <= spans[2].start <= spans[2].end <= spans[1].end <= time.time()
    assert take_spans("learner") == ()


def test_what_raises_has_a_span_too() -> None:
    with pytest.raises(ValueError), span("broken"):
        raise ValueError
    assert [s.name for s in take_spans("driver")] == ["broken"]


def test_a_process_began_before_its_first_line_of_python() -> None:
    assert process_start() == psutil.Process().create_time()
    assert 0 < time.time() - process_start() < 24 * 3600


def test_a_clock_that_starts_now_forgets_the_run_before_it() -> None:
    with span("of an earlier run"):
        pass
    assert start_clock(5.0) == 5.0
    assert time.time() - start_clock(None) < 60
    assert take_spans("driver") == ()
