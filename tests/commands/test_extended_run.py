"""`rayqd distill` with more steps than a run has finished: settings, data, plan and files are real, processes are not.

What the learner computes then is in tests/learner.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter
from rich.console import Console

from rayqd.audit import AuditEvent, audit_step
from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.commands import distill as module
from rayqd.errors import RunError
from rayqd.events import Event, FinishedEvent, ReadyEvent, StartEvent
from rayqd.runs.environment import Environment
from tests.driver.recorded_actors import RecordedActors
from tests.example_events import arm_result, step_event
from tests.report.test_report import ENVIRONMENT

ROWS = tuple(
    arm_result(name, kl) for name, kl in (("teacher", 0.0), ("round-to-nearest INT4", 0.5), ("distilled INT4", 0.25))
)


def life(start: int, end: int) -> list[Event]:
    """What the processes tell of the steps after `start`."""
    steps: list[Event] = []
    for number in range(start + 1, end + 1):
        steps += [step_event(number), AuditEvent(steps=(audit_step(number, [], 0),))]
    ended = FinishedEvent(rows=ROWS, num_steps=end, exported_step=end)
    return [ReadyEvent(role="learner", step=start or -1, node=""), StartEvent(step=start), *steps, ended]


@pytest.fixture
def run(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs so many steps, which tell what they are given; returns the result, and what is printed."""
    told: list[Event] = []

    class Actors(RecordedActors):
        nodes_to_start = ()

        def __init__(self, *args: Any, **settings: Any) -> None:
            del args, settings
            super().__init__(told)

        def set_data(self, *data: Any) -> None: ...

        def wait_for_end(self, timeout_seconds: float) -> None: ...

        def role_spans(self) -> list[Any]:
            return []

    here = NodeGroup(name="here", cpus=2, gpus=0, labels={}, running=1, startable=0)

    @contextlib.contextmanager
    def connect(*args: Any) -> Iterator[Any]:
        del args
        nodes = Nodes(groups=(here,))
        yield SimpleNamespace(size=None, log_dir=None, dashboard=None, nodes=nodes, store_bytes=math.inf)

    environment = TypeAdapter(Environment).validate_python(ENVIRONMENT)
    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "RunActors", Actors)
    monkeypatch.setattr(module, "collect_environment", lambda *args: environment)

    def start(num_steps: int, events: list[Event]) -> tuple[Any, str]:
        told[:] = events
        output = io.StringIO()
        steady = {"steps": num_steps, "schedule": "constant", "warmup_ratio": 0.0}
        console = Console(file=output, width=160)
        result = module.distill(tiny_config(learner=steady), console, make_engine=lambda *args: pytest.fail("starts"))
        return result, output.getvalue()

    return start


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps_and_is_finished_again(run: Any) -> None:
    first, _ = run(10, life(0, 10))  # 40 sequences, and the data has 36 rows beside those held out: all are read
    with pytest.raises(RunError, match="has finished, and no checkpoint of it is there: 12 steps would begin at the"):
        run(12, [])
    (first.run_dir / "checkpoints" / "step-000010").mkdir(parents=True)
    result, output = run(12, life(10, 12))
    assert "goes on to step 12; what it came to is in result-step-000010.json" in output
    assert "learning rate: 0.001, as in a run of 12 steps from its start" in output
    assert "resuming after step 10" in output
    assert [row["step"] for row in result.metrics() if row["event"] == "step"] == list(range(1, 13))
    assert json.loads((result.run_dir / "result.json").read_text())["num_steps"] == 12
    assert json.loads((result.run_dir / "result-step-000010.json").read_text())["num_steps"] == 10
    assert "has finished already" in run(12, [])[1]
    with pytest.raises(RunError, match=r"learner\.steps: 12 -> 10"):
        run(10, [])


@pytest.mark.slow
def test_a_run_that_drew_part_of_the_rows_stays_as_it_was(run: Any) -> None:
    result, _ = run(2, life(0, 2))  # 8 sequences of 36 rows
    files = [result.run_dir / name for name in ("config.toml", "data.json", "result.json", "audit.jsonl")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(RunError, match="took part of the data's rows, and a run of 12 takes more of them"):
        run(12, life(2, 12))
    assert [file.read_bytes() for file in files] == before
