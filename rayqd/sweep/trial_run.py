"""A trial's run: an ordinary one that yields each evaluation, and may be ended at any of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from rayqd.actors.connection import Cluster
from rayqd.actors.run_actors import RunActors
from rayqd.actors.workers import TeacherHandle
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.console.progress import Progress
from rayqd.data.plan import make_plan
from rayqd.driver.monitor import Monitor
from rayqd.events import ArmResult, EvalEvent, Fidelity, FinishedEvent, ReadyEvent
from rayqd.files import replace_directory
from rayqd.report.write import Report
from rayqd.rollout.worker import MakeEngine
from rayqd.runs.config_file import load_run_config
from rayqd.runs.data_file import RunData, write_data
from rayqd.runs.directory import RunDirectory
from rayqd.runs.environment import Environment
from rayqd.runs.metrics_file import read_events
from rayqd.runs.paths import CONFIG, START
from rayqd.runs.result_file import DistillResult, StoppedEarly
from rayqd.runs.start import read_arms
from rayqd.sweep.shared import Key, Rows, data_key
from rayqd.sweep.trials import TrialReport

_GOODBYE_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0  # after a sweep that was killed: its trials' processes are not gone at once


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResources:
    """What a sweep gives each of its trials, beside the data and the teachers that some of them share."""

    cluster: Cluster
    placement: Placement
    environment: Environment
    make_engine: MakeEngine | None


def run_trial(
    config: Config,
    resources: TrialResources,
    data: Rows,
    teachers: list[TeacherHandle],
    summarize: Callable[[], RunData],
) -> Generator[TrialReport]:
    """Run `config`, from its last checkpoint if there is one, and yield each evaluation.

    `summarize` waits for what its page is to tell of its data.
    After a resumed start the earlier evaluations come once more. Closing the iterator before its last one ends the run
    there: `result.json` then says that it was stopped early, and at which step. The one after the last step
    comes when the run has finished and exported.
    """
    with closing(RunDirectory(config, patience_seconds=_PATIENCE_SECONDS)) as run_dir:
        if run_dir.result is None:
            yield from _run(config, run_dir, resources, data, teachers, summarize)
        result = run_dir.result
        assert isinstance(result, DistillResult)
        yield _report(result.num_steps, result.student.fidelity, done=True)


def reuse_start(config: Config, run_dir: RunDirectory) -> None:
    """Take the `start/` of another trial of the sweep, with what was measured of it, if one fits and none is there.

    Trials that differ only in how they train start from the same weights, which need be calibrated only once.
    """
    own = run_dir.path / START
    if own.exists():
        return
    for other in sorted(run_dir.path.parent.glob(f"*/{START}")):
        if _start_key(load_run_config(other.parent / CONFIG)) == _start_key(config):
            _link_directory(other, own)
            _record_start(own, run_dir)
            return


def _run(
    config: Config,
    run_dir: RunDirectory,
    resources: TrialResources,
    data: Rows,
    teachers: list[TeacherHandle],
    summarize: Callable[[], RunData],
) -> Iterator[TrialReport]:
    """Yield the evaluations after training began, until the run has finished or the iterator is closed."""
    began = time.monotonic()
    with (run_dir.path / "log.txt").open("a") as log, Progress(Console(file=log), config.learner.steps) as progress:
        run_dir.link_logs(resources.cluster.log_dir)
        reuse_start(config, run_dir)
        placement = resources.placement
        actors = RunActors(config, resources.cluster, resources.make_engine, placement=placement, teachers=teachers)
        try:
            run_dir.audit.begin(asdict(make_plan(config, data[0].sizes)))
            actors.set_data(*data)
            write_data(run_dir.path, summarize())
            report = Report(config, "distill", resources.environment)
            monitor = Monitor(actors, config, run_dir, progress, report)
            events = _events(monitor, run_dir.path)
            evaluated: list[EvalEvent] = []
            try:
                while isinstance(event := next(events), EvalEvent):
                    evaluated.append(event)
                    if 0 < event.step < config.learner.steps:  # after the last one there is nothing left to end
                        yield _report(event.step, event.fidelity, done=False)
            except GeneratorExit:
                step = evaluated[-1].step
                if config.storage:  # the learner's uploads end with its process
                    monitor.stop()
                rows = [ArmResult(arm=e.arm, fidelity=e.fidelity) for e in evaluated if e.step in (0, step)]
                ended = FinishedEvent(rows=tuple(rows), num_steps=step, exported_step=step)
                result = monitor.result(ended, time.monotonic() - began)
                early = StoppedEarly(step=step, of=config.learner.steps)
                run_dir.finish(replace(result, stopped_early=early, environment=resources.environment))
                run_dir.upload()
                raise
            actors.wait_for_end(timeout_seconds=_GOODBYE_SECONDS)
            result = monitor.result(event, time.monotonic() - began)
            result = replace(result, export=run_dir.export, environment=resources.environment)
            run_dir.finish(result)
            report.write(result)
            run_dir.upload(export=True)
        finally:
            actors.kill()


def _events(monitor: Monitor, run_dir: Path) -> Iterator[EvalEvent | FinishedEvent]:
    """Yield evaluations, first those before the checkpoint that the run goes on from, and last that it is finished."""
    monitor.until(ReadyEvent)
    yield from (event for event in read_events(run_dir) if isinstance(event, EvalEvent))
    while True:
        yield monitor.until(EvalEvent, FinishedEvent)


def _report(step: int, fidelity: Fidelity, *, done: bool) -> TrialReport:
    return {"step": step, "kl_to_teacher": fidelity.kl_to_teacher, "perplexity": fidelity.perplexity, "done": done}


def _start_key(config: Config) -> Key:
    """Return a key that is equal for two trials just when start and teacher are the same."""
    return (*data_key(config), config.model.dtype, config.quant.model_dump_json(), config.teachers)


def _link_directory(source: Path, destination: Path) -> None:
    """Copy by hard links where the disk can: nobody writes to these files, and the weights may be large."""
    with replace_directory(destination) as partial:
        shutil.copytree(source, partial, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _record_start(start: Path, run_dir: RunDirectory) -> None:
    """Record the untrained arms' evaluations, as the monitor does where the learner measures them itself."""
    for arm, fidelity in read_arms(start).items():
        run_dir.append(EvalEvent(step=0, arm=arm, fidelity=fidelity), time.time())
