"""A trial that is ended at its last step, as a scheduler ends all that come so far, has finished and has exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from rayqd.config import Config
from rayqd.events import Event, FinishedEvent, ReadyEvent
from rayqd.runs.directory import RunDirectory
from rayqd.runs.environment import collect_environment
from rayqd.runs.result_file import DistillResult
from rayqd.sweep import trial_run
from rayqd.sweep.trial_run import TrialResources, run_trial
from tests.example_events import arm_result, eval_event

STOPPED: list[object] = []  # monitors, before their run had its result


class Quiet:
    """Stands for what the trial starts and writes, beside its events and its result."""

    log_dir = None
    sizes = (36,)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class ScriptedMonitor(Quiet):
    """Tells of evaluations before the first step, on the way and after the last one, and then that all is exported."""

    def __init__(self, *_: Any, **__: Any) -> None:
        evals = [eval_event("distilled INT4", 0.5 - step / 20, step=step) for step in (0, 2, 4)]
        ended = FinishedEvent(rows=(arm_result("distilled INT4", 0.3),), num_steps=4, exported_step=4)
        self._events: Iterator[Event] = iter([*evals, ended])

    def stop(self) -> None:
        """Let the learner keep its last step, and end its uploads."""
        STOPPED.append(self)

    def until(self, *kinds: type[Event]) -> Event | None:
        return None if kinds == (ReadyEvent,) else next(self._events)

    def result(self, finished: FinishedEvent, _: float) -> DistillResult:
        return DistillResult(
            name="trial", rows=tuple(finished.rows), seconds={}, start_seconds={}, num_steps=finished.num_steps,
            exported_step=finished.exported_step,
        )  # fmt: skip


@pytest.mark.parametrize(("ended_at", "is_stored"), [(2, False), (2, True), (4, False)])
def test_a_trial_is_stopped_early_before_its_last_step_alone(
    ended_at: int, is_stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, stands_in in (("RunActors", Quiet), ("Report", Quiet), ("Monitor", ScriptedMonitor)):
        monkeypatch.setattr(trial_run, name, stands_in)
    monkeypatch.setattr(trial_run, "write_data", lambda *_: None)
    config = Config(
        runs_dir=tmp_path, name="trial", model={"name": "smollm2-135m"}, learner={"steps": 4, "batch_size": 4},
        eval={"every": 2}, checkpoint={"best": "kl_to_teacher"},
        storage=f"file://{tmp_path}/store" if is_stored else None,
    )  # fmt: skip
    STOPPED.clear()
    quiet = cast("Any", Quiet())
    resources = TrialResources(
        cluster=quiet, placement=quiet, environment=collect_environment(), make_engine=None
    )  # fmt: skip
    with closing(run_trial(config, resources, cast("Any", (quiet, quiet)), [], quiet.summary)) as reports:
        for report in reports:
            if report["step"] >= ended_at:
                break
    with closing(RunDirectory(config)) as run_dir:
        result = run_dir.result
    assert isinstance(result, DistillResult)
    assert result.num_steps == ended_at
    assert (result.stopped_early is None) == (ended_at == 4)
    assert bool(result.export) == (ended_at == 4)
    assert len(STOPPED) == is_stored
