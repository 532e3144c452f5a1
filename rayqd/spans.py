"""What a process spends its time on before a run's first step and after its last, as spans of the epoch clock.

Whatever takes long says so where it happens, and whoever owns the process hands on what was said:

    with span("load model"): ...        take_spans("teacher-0") ─► the driver ─► result.json, report.html
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that a process did. Spans of a role may lie within each other, and beside those of other roles."""

    role: str  # driver, controller, learner, teacher-0, rollout-0
    name: str
    start: float  # seconds, of whatever clock all spans beside it have: the epoch's, until a run has its result
    end: float

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class SpansEvent:
    """What a process spent its time on, for the run's start-up table."""

    spans: tuple[Span, ...]  # by the epoch's clock


_RECORDED: deque[tuple[str, float, float]] = deque()  # of this process


@contextmanager
def span(name: str) -> Generator[None]:
    """Record the body as a span of this process, also where it raises."""
    start = time.time()
    try:
        yield
    finally:
        record_span(name, start, time.time())


def record_span(name: str, start: float, end: float) -> None:
    """Record a span of this process whose ends are known, in seconds since the epoch."""
    _RECORDED.append((name, start, end))


def take_spans(role: str) -> tuple[Span, ...]:
    """Return what this process has recorded since the last call, in order of start, as spans of `role`."""
    taken = [_RECORDED.popleft() for _ in range(len(_RECORDED))]
    return tuple(Span(role=role, name=n, start=s, end=e) for n, s, e in sorted(taken, key=lambda t: (t[1], -t[2])))


def process_start() -> float:
    """Return when this process began, the interpreter and its imports included, in seconds since the epoch."""
    return psutil.Process().create_time()


def start_clock(began: float | None) -> float:
    """Return `began`, or the present where it is None: then what this process recorded before is dropped."""
    if began is not None:
        return began
    _RECORDED.clear()
    return time.time()
