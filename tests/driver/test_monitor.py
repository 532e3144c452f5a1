"""The monitor shows and keeps each event once, in order, and gives back the one that was waited for."""

import errno
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.console.progress import Progress
from rayqd.driver.monitor import Monitor
from rayqd.errors import DeathError, PlacementError, WorkerError
from rayqd.events import (
    CheckpointEvent,
    EvalEvent,
    Event,
    FinishedEvent,
    NoticeEvent,
    QuarantineEvent,
    ReadyEvent,
    StartEvent,
    StatusEvent,
    StoppedEvent,
    TimedEvent,
)
from rayqd.runs.directory import RunDirectory
from rayqd.spans import Span, SpansEvent
from tests.driver.recorded_actors import NoReport, RecordedActors
from tests.example_events import arm_result, eval_event, step_event


@pytest.fixture
def monitored(tiny_config: Any) -> Any:
    """A function that returns the monitor of such actors, what it prints to, and the run's directory."""
    opened: list[RunDirectory] = []

    def monitor(actors: RecordedActors) -> tuple[Monitor, io.StringIO, Path]:
        config, output = tiny_config(), io.StringIO()
        opened.append(RunDirectory(config))
        given: Any = (actors, config, opened[0], Progress(Console(file=output, width=160), 4), NoReport())
        return Monitor(*given), output, config.run_dir

    yield monitor
    opened[0].close()


QUARANTINED = QuarantineEvent(
    step=2,
    index=1,
    reason="the teacher computed inf or nan",
    on_policy=True,
    policy_version=1,
    prompt_ids=(5, 6),
    completion_ids=(7, 2),
)
RUN = [
    ReadyEvent(role="learner", step=-1, node="node-1"),
    StatusEvent(text="calibrating"),
    eval_event("GPTQ INT4", 0.5),
    SpansEvent(spans=(Span(role="learner", name="load student", start=95.0, end=99.5),)),
    StartEvent(step=0),
    step_event(1, learner_seconds=2.0),
    CheckpointEvent(step=1, path="somewhere"),
    NoticeEvent(text="teacher-0 died"),
    QUARANTINED,
    step_event(2, learner_seconds=3.0),
    FinishedEvent(rows=(arm_result("teacher", 0.0), arm_result("distilled INT4", 0.25)), num_steps=2, exported_step=2),
]


def test_each_event_is_shown_and_kept_once_up_to_the_one_that_was_waited_for(monitored: Any) -> None:
    monitor, output, run_dir = monitored(RecordedActors(RUN))
    assert monitor.until(EvalEvent, FinishedEvent) == RUN[2]
    finished = monitor.until(EvalEvent, FinishedEvent)
    assert finished == RUN[-1]
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("learner ready after 100 s on node-1")
    assert lines[1] == "GPTQ INT4: KL to teacher 0.5000, perplexity 10.500"
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "step 1/4", "teacher-0 died", "step 2: sequence 1 is left out: the teacher computed inf or nan", "step 2/4",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"], row["time"]) for row in rows] == [
        ("eval", 0, 102.0), ("step", 1, 105.0), ("step", 2, 109.0),
    ]  # fmt: skip
    assert json.loads((run_dir / "quarantine.jsonl").read_text())["completion_ids"] == [7, 2]
    result = monitor.result(finished, total_seconds=9.04)
    startup = monitor.startup(90.0, [])
    assert (startup.first_step, startup.last_step) == (15.0, 19.0)  # events number 5 and 9, a second each from 100 on
    assert [(s.role, s.start, s.end) for s in startup.spans] == [("learner", 5.0, 9.5)]
    assert result.seconds == {"total": 9.0, "rollout": 1.2, "teacher": 0.0, "learner": 5.0}
    assert result.parts is not None
    assert result.parts["learner"] == 5.0


@pytest.mark.parametrize(
    ("step", "started_at"),
    [(-1, 3), (0, 3), (60, 0)],
    ids=["a new run", "untrained arms are measured", "a run that goes on, perhaps where the student writes"],
)
def test_engines_that_wait_are_made_once_the_learner_is_at_work(step: int, started_at: int, monitored: Any) -> None:
    # Three events are seen at a time: the first step is among the second three.
    start = [
        ReadyEvent(role="learner", step=step, node=""),
        StatusEvent(text="calibrating"),
        StartEvent(step=max(step, 0)),
    ]
    actors = RecordedActors([*start, step_event(max(step, 0) + 1), RUN[-1]])
    monitored(actors)[0].until(FinishedEvent)
    assert actors.engines_started_at == started_at


def test_what_is_cut_is_explained_once_where_something_is(monitored: Any, tiny_config: Any) -> None:
    steps = [step_event(step, cut_share=share) for step, share in enumerate([None, 0.0, 0.5, 1.0], start=1)]
    monitor, output, _ = monitored(RecordedActors([StartEvent(step=0), *steps, RUN[-1]]))
    monitor.until(FinishedEvent)
    lines = output.getvalue().splitlines()
    (explained,) = [number for number, line in enumerate(lines) if line.startswith("cut: ")]
    assert "cut 50%" in lines[explained - 1]
    limit = tiny_config().rollout.max_new_tokens
    assert (
        lines[explained]
        == f"cut: completions that rollout.max_new_tokens={limit} ended before the student came to an end"
    )


def test_ctrl_c_waits_until_the_learner_has_kept_its_last_step(monitored: Any) -> None:
    events = [*RUN[:6], step_event(2), StoppedEvent(step=2), *RUN[-1:]]
    actors = RecordedActors(events, interrupt_at=6)
    monitor, output, run_dir = monitored(actors)
    with pytest.raises(KeyboardInterrupt):
        monitor.until(FinishedEvent)
    assert actors.stop_requested
    assert output.getvalue().splitlines()[-1] == "stopped after step 2, of which a checkpoint is kept"
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_terminal_that_closes_after_its_signal_does_not_keep_the_last_step_from_being_kept(
    tiny_config: Any, request: pytest.FixtureRequest
) -> None:
    """Printing the steps that come while the learner stops fails, and only then it has stopped."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if actors.stop_requested:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    actors = RecordedActors([*RUN[:6], step_event(2), StoppedEvent(step=2), *RUN[-1:]], interrupt_at=6)
    config, output = tiny_config(), Gone()
    run_dir = RunDirectory(config)
    request.addfinalizer(run_dir.close)
    given: Any = (actors, config, run_dir, Progress(Console(file=output, width=160), 4), NoReport())
    monitor = Monitor(*given)
    with pytest.raises(KeyboardInterrupt):
        monitor.until(FinishedEvent)
    assert monitor._stopped
    assert len((config.run_dir / "metrics.jsonl").read_text().splitlines()) == 3


class SlowActors(RecordedActors):
    """A learner that is ready at the third look, long after it should have been."""

    def __init__(self, waits_for_room: bool) -> None:
        super().__init__(
            [ReadyEvent(role="learner", step=0, node=""), FinishedEvent(rows=(), num_steps=1, exported_step=1)]
        )
        self._waits_for_room = waits_for_room
        self._num_looks = 0

    def list_unplaced(self) -> list[str]:
        self._num_looks += 1
        return ["rollout-0"] if self._num_looks < 3 else []

    def events(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        return super().events(after, timeout_seconds) if self._num_looks >= 3 else []

    def wait_for_room(self) -> bool:
        return self._waits_for_room


def starting(actors: SlowActors, tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("rayqd.console.progress.INACTIVITY_SECONDS", (0.0, 600.0))
    config = tiny_config(ray={"placement_timeout_seconds": 1e-9})
    screen = io.StringIO()
    run_dir = RunDirectory(config)
    try:
        with Progress(Console(file=screen, width=200), 4) as progress:
            Monitor(actors, config, run_dir, progress, NoReport()).until(FinishedEvent)
    finally:
        run_dir.close()
    return screen.getvalue()


def test_what_has_its_place_and_is_slow_is_waited_for(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = starting(SlowActors(waits_for_room=False), tiny_config, monkeypatch)
    assert "waiting for rollout-0 for 0 s: the cluster has room for it, this machine is slow to start it" in screen


def test_what_finds_no_room_ends_the_run(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlacementError, match="the cluster made no room for rollout-0 within"):
        starting(SlowActors(waits_for_room=True), tiny_config, monkeypatch)


class DyingActors(RecordedActors):
    """Their learner dies after the events of its first life."""

    num_restarts = 0

    def __init__(self, *lives: Sequence[Event]) -> None:
        super().__init__(lives[0])
        self._lives = list(lives[1:])

    def events(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        if events := super().events(after, timeout_seconds):
            return events
        raise DeathError("the learner died: its process is gone")

    def restart(self) -> None:
        self.num_restarts += 1
        RecordedActors.__init__(self, self._lives.pop(0))


def test_a_learner_that_dies_is_started_again_and_steps_done_twice_are_kept_once(monitored: Any) -> None:
    first = [
        ReadyEvent(role="learner", step=-1, node=""),
        StartEvent(step=0),
        *(step_event(step) for step in (1, 2, 3)),
    ]
    second = [
        ReadyEvent(role="learner", step=2, node=""),
        StartEvent(step=2),
        *(step_event(step) for step in (3, 4)),
        RUN[-1],
    ]
    died = NoticeEvent(text="rollout-1 died (it is gone)", died="rollout-1")
    actors = DyingActors([*first, died], second)
    monitor, output, run_dir = monitored(actors)
    assert monitor.until(FinishedEvent) == RUN[-1]
    assert actors.num_restarts == 1
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    told = output.getvalue()
    assert "the learner died: its process is gone; it is started again and goes on from the last checkpoint" in told
    assert "learner is back after 0 s" in told
    assert "resuming after step 2" in told
    result = monitor.result(RUN[-1], 3600.0)
    assert result.deaths == {"learner": 1, "rollout-1": 1}
    assert [(fault.step, fault.text) for fault in result.faults] == [
        (3, "rollout-1 died (it is gone)"),
        (3, "the learner died: its process is gone"),
    ]
    assert all(3500 < fault.seconds <= 3600 for fault in result.faults)  # just now, in a run that began an hour ago


def test_a_learner_that_dies_again_and_again_with_no_new_step_ends_the_run(monitored: Any) -> None:
    life = [ReadyEvent(role="learner", step=-1, node=""), StartEvent(step=0), step_event(1)]
    monitor, _, _ = monitored(DyingActors(*([life] * 4)))  # ray.max_restarts is 3
    with pytest.raises(WorkerError, match=r"^the learner died: its process is gone, 4 times with no new step between"):
        monitor.until(FinishedEvent)
