"""The course of a trial: an ordinary run that tells each evaluation, and may be ended at any of them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rayqd.actors.connection import Cluster
from rayqd.actors.run_actors import RunActors
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.console.progress import Progress
from rayqd.data import ExampleSet
from rayqd.driver.monitor import Monitor
from rayqd.events import ArmResult, EvalEvent, FinishedEvent, ReadyEvent
from rayqd.report.write import Report
from rayqd.rollout.worker import MakeEngine
from rayqd.runs.directory import STOPPED_EARLY, RunDirectory
from rayqd.runs.metrics_file import read_events
from rayqd.sweep.inherit import inherit_start

Evaluation = dict[str, Any]  # "step", "kl_to_teacher", "perplexity"; "done" with the last one

_GOODBYE_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0  # after a sweep that was killed: its trials' processes are not gone at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a sweep gives each of its trials."""

    cluster: Cluster
    placement: Placement
    teachers: list[Any]
    data: tuple[ExampleSet, ExampleSet]  # training and held out
    environment: Mapping[str, Any]  # machine, cluster and versions, for the records
    make_engine: MakeEngine | None


def evaluations(config: Config, means: Means) -> Generator[Evaluation]:
    """Run `config`, from its last checkpoint if there is one, and yield what each evaluation found.

    After a resumed start the earlier evaluations come once more. Closing the iterator before its last one ends the run
    there: `result.json` then says that it was stopped early, and at which step.
    """
    with closing(RunDirectory(config, patience_seconds=_PATIENCE_SECONDS)) as run_dir:
        if run_dir.result is None:
            yield from _run(config, run_dir, means)
        assert run_dir.result is not None
        yield _evaluation(run_dir.result["num_steps"], run_dir.result["rows"][-1]) | {"done": True}


def _run(config: Config, run_dir: RunDirectory, means: Means) -> Iterator[Evaluation]:
    began = time.monotonic()
    with (run_dir.path / "log.txt").open("a") as log, Progress(Console(file=log), config.learner.steps) as progress:
        run_dir.link_logs(means.cluster.log_dir)
        inherit_start(config, run_dir)
        roles = RunActors(config, means.cluster, means.make_engine, placement=means.placement, teachers=means.teachers)
        try:
            roles.set_data(*means.data)
            report = Report(config, "distill", means.environment)
            monitor = Monitor(roles, config, run_dir, progress, report)
            told: list[EvalEvent] = []
            finished: FinishedEvent | None = None
            try:
                for event in _events(monitor, run_dir.path):
                    if isinstance(event, FinishedEvent):
                        finished = event
                        break
                    told.append(event)
                    if event.step > 0:
                        yield _evaluation(event.step, asdict(event.fidelity))
            except GeneratorExit:
                step = told[-1].step
                rows = [ArmResult(arm=e.arm, fidelity=e.fidelity) for e in told if e.step in (0, step)]
                result = monitor.result(rows, step, time.monotonic() - began)
                early = {"step": step, "of": config.learner.steps}
                run_dir.finish(result | {STOPPED_EARLY: early, "environment": means.environment})
                run_dir.upload()
                raise
            roles.wait_for_end(timeout_seconds=_GOODBYE_SECONDS)
            assert finished is not None
            result = monitor.result(finished.rows, config.learner.steps, time.monotonic() - began)
            result |= {"export": run_dir.export, "environment": means.environment}
            run_dir.finish(result)
            report.write(result)
            run_dir.upload(export=True)
        finally:
            roles.kill()


def _events(monitor: Monitor, run_dir: Path) -> Iterator[EvalEvent | FinishedEvent]:
    """Evaluations, first those before the checkpoint that the run goes on from, and last that it is finished."""
    monitor.until(ReadyEvent)
    yield from (event for event in read_events(run_dir) if isinstance(event, EvalEvent))
    while True:
        yield monitor.until(EvalEvent, FinishedEvent)


def _evaluation(step: int, found: dict[str, Any]) -> Evaluation:
    return {"step": step, "kl_to_teacher": found["kl_to_teacher"], "perplexity": found["perplexity"]}
