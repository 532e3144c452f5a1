"""`rayqd watch`: a run seen from another terminal. Reads its directory and touches nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rayqd.console.progress import Progress, duration, eval_line, headline
from rayqd.console.result_table import print_result
from rayqd.console.say import say
from rayqd.events import EvalEvent, RecordedEvent, StepEvent
from rayqd.runs.metrics_file import MetricsTail
from rayqd.runs.record import RunRecord, is_running, read_run

_POLL_SECONDS = 0.5
_KILLED_EXIT_CODE = 1


def watch(path: Path, console: Console | None = None, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Show what the run in `path` shows, from its first line on, until it ends; returns the exit code of the run."""
    console = console or Console()
    record = read_run(path)
    if record.config:
        say(console, headline(record.config))
    _follow(record, console, sleep)
    return _tell_end(read_run(path), console)


def _follow(record: RunRecord, console: Console, sleep: Callable[[float], None]) -> None:
    tail = MetricsTail(record.path)
    steps = _StepClock()
    with Progress(console, record.num_steps or 0, clock=lambda: steps.seconds) as progress:
        progress.begin_steps()
        while True:
            running = is_running(record.path)  # before the last rows are read, not after
            events = tail.new_events()
            for event in events:
                steps.count(event)
                _show(event, progress)
            if not running:
                return
            if not steps.seconds and not events:
                progress.status(f"{record.name} is starting  {duration(time.time() - record.updated)}")
            sleep(_POLL_SECONDS)


class _StepClock:
    """Goes on by what each step took, so that the time left is right whenever one starts to look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def count(self, event: RecordedEvent) -> None:
        if isinstance(event, StepEvent):
            self.seconds += event.learner.wait_seconds + event.learner.learner_seconds


def _show(event: RecordedEvent, progress: Progress) -> None:
    if isinstance(event, EvalEvent):
        progress.say(eval_line(event))
    elif isinstance(event, StepEvent):
        progress.step(event)


def _tell_end(record: RunRecord, console: Console) -> int:
    """Print the result, or why there is none; returns the exit code of the run."""
    if record.result:
        print_result(console, record.result, record.path.absolute(), title="the result")
        return 0
    if record.state == "finished":
        say(console, f"{record.name} has finished")
        return 0
    where = f"{record.name} at step {record.step}" if record.trains else record.name
    if record.state == "failed":
        print(f"rayqd: error: {record.error}", file=sys.stderr)
    elif record.state == "stopped":
        print(f"rayqd: {where} was stopped; its command goes on from the last checkpoint", file=sys.stderr)
    elif record.state == "running":
        print(f"rayqd: {where} has just been started again; watch it anew", file=sys.stderr)
    else:
        print(f"rayqd: {where} has ended without a word: it was killed, or its machine was", file=sys.stderr)
    return _KILLED_EXIT_CODE if record.exit_code is None else record.exit_code
