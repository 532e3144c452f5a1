"""The composition root: the one file that knows everybody.

start Ray ─► start every role at once ─► check what can be checked, read data ─► Ray Train runs the learner
                 │                                                                  │
                 imports what it will need, while this process                      rollouts and teachers load their
                 does the same for its checks                                       models while the learner does

On a cluster, where an actor may make a node start, and with distill.seq_kd, where the teacher first has the machine to
itself to write completions, the checks come before Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from rayqd.actors.connection import Cluster, connect
from rayqd.actors.remote import count_prefetched
from rayqd.actors.run_actors import RunActors
from rayqd.cluster.placement import Placement, format_nodes, place
from rayqd.config import Config
from rayqd.config.python import check_is_config
from rayqd.config.resolved import with_absolute_paths
from rayqd.console.data import first_row_lines
from rayqd.console.progress import Progress, headline
from rayqd.console.result_table import print_result
from rayqd.console.say import say
from rayqd.data import ExampleSet
from rayqd.data.summary import summarize_data
from rayqd.driver.dtype import check_machine, describe_dtype, is_elsewhere
from rayqd.driver.extension import begin_audit, extend
from rayqd.driver.frozen import describe_date, with_frozen_settings
from rayqd.driver.monitor import Monitor
from rayqd.driver.object_store import describe_store
from rayqd.driver.seq_kd import generate_teacher_completions
from rayqd.events import FinishedEvent
from rayqd.model.import_transformers import import_transformers
from rayqd.model.source import check_directories
from rayqd.report.write import Report, write_report
from rayqd.rollout.worker import MakeEngine
from rayqd.runs.data_file import write_data
from rayqd.runs.directory import RunDirectory
from rayqd.runs.ended import record_abnormal_exit
from rayqd.runs.environment import collect_environment
from rayqd.runs.extension import is_done
from rayqd.runs.paths import EXPORT
from rayqd.runs.result import Result
from rayqd.runs.result_file import DistillResult
from rayqd.spans import span, start_clock, take_spans
from rayqd.trackers.outcome import outcome_of, track
from rayqd.trackers.trackers import Trackers

if TYPE_CHECKING:
    from rayqd.driver.preflight import Checked

_GOODBYE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """Model and rows of a run that can start."""

    checked: Checked
    training: ExampleSet
    heldout: ExampleSet


def distill(
    config: Config,
    console: Console | None = None,
    *,
    make_engine: MakeEngine | None = None,
    make_teacher_engine: MakeEngine | None = None,
    began: float | None = None,
) -> Result:
    """Run `config` to its end, from its last checkpoint if there is one; a finished run only tells its result.

    `began` is when the command was given, in seconds since the epoch, if that was before this call: its start-up table
    counts from then on.

    `make_engine` is called in every rollout worker, `make_teacher_engine` where the teacher writes for
    `distill.seq_kd`; without them the engine is vLLM. Raises a RayqdError that says in one line what is wrong.
    """
    console = console or Console()
    check_is_config(config)
    is_command, began = began is not None, start_clock(began)
    asked = with_absolute_paths(config)
    config = with_frozen_settings(asked)
    run_dir = RunDirectory(config, on_wait=partial(say, console))
    try:
        if remark := run_dir.set_damaged_result_aside():
            say(console, remark)
        result = run_dir.result
        if not isinstance(result, DistillResult) or not is_done(result, config):
            with record_abnormal_exit(run_dir.path), track(config, partial(say, console)) as trackers:
                remarks = [describe_dtype(asked, config), describe_date(asked, config)]
                read = partial(_read_inputs, config, run_dir, console, is_command=is_command)
                result = _run(
                    config, remarks, run_dir, console, make_engine, make_teacher_engine, began, trackers, read
                )
                run_dir.finish(result)
                write_report(config, result)
                trackers.finish(outcome_of(result, run_dir.path))
        else:
            say(console, f"{run_dir.path} has finished already; this is its result")
        cost = f"what {config.quant.format.upper()} cost, and how much of it came back"
        print_result(console, result, run_dir.path, title=cost)
        run_dir.upload(export=True)
    finally:
        run_dir.close()
    rows = [row.to_json() for row in result.rows]
    return Result(run_dir=run_dir.path, export_dir=run_dir.path / EXPORT, rows=rows)


def _run(
    config: Config,
    remarks: list[str],
    run_dir: RunDirectory,
    console: Console,
    make_engine: MakeEngine | None,
    make_teacher_engine: MakeEngine | None,
    began: float,
    trackers: Trackers,
    read_inputs: Callable[[Progress], _Inputs],
) -> DistillResult:
    with Progress(console, config.learner.steps) as progress:
        progress.say(headline(config))
        for remark in filter(None, remarks):
            progress.say(remark)
        progress.status("looking at the machine")
        with span("look at the machine"):  # the first look at a GPU may take half a minute
            check_machine(config, runs_vllm=make_engine is None and (config.is_on_policy or config.distill.seq_kd))
        with span("look for the models"):
            check_directories(config)
        inputs = read_inputs(progress) if is_elsewhere(config) or config.distill.seq_kd else None
        progress.status("starting Ray")
        with connect(config, progress.say) as cluster:
            run_dir.link_logs(cluster.log_dir)  # of the checks' failures too
            placement = place(config, cluster.nodes)
            start = partial(_start_actors, config, cluster, placement, make_engine)
            actors = None if inputs else start()
            inputs = inputs or read_inputs(progress)
            checked, training = inputs.checked, inputs.training
            if cluster.dashboard:
                progress.say(f"dashboard: http://{cluster.dashboard}")
            prefetched = count_prefetched(config, placement)
            if full := describe_store(config, training, inputs.heldout, prefetched, cluster.store_bytes):
                progress.say(full)
            environment = replace(collect_environment(cluster.size, config), forward=checked.forward)
            seconds: dict[str, float] = {}
            if config.distill.seq_kd:
                started = time.monotonic()
                tokenizer = checked.tokenizer
                training = generate_teacher_completions(
                    training, tokenizer, config, cluster, progress, make_teacher_engine
                )
                run_dir.upload()  # a run that goes on elsewhere has the same completions
                seconds["writing"] = time.monotonic() - started
            actors = actors or start()
            if cluster.log_dir and make_engine is None:  # a Ray of this machine's own
                _check_gpu_memory(checked, config, placement)
            if actors.nodes_to_start:
                progress.say(f"waiting for the cluster to start {format_nodes(actors.nodes_to_start)}")
            actors.set_data(training, inputs.heldout)
            report = Report(config, "distill", environment)
            monitor = Monitor(actors, config, run_dir, progress, report, trackers)
            finished = monitor.until(FinishedEvent)
            with span("end Ray Train"):
                actors.wait_for_end(timeout_seconds=_GOODBYE_SECONDS)
            monitor.collect_spans()
            result = monitor.result(finished, time.time() - began)
    return replace(
        result,
        seconds={**result.seconds, **{part: round(value, 1) for part, value in seconds.items()}},
        export=run_dir.export,
        environment=environment,
        startup=monitor.startup(began, take_spans("driver")),
    )


def _start_actors(config: Config, cluster: Cluster, placement: Placement, make_engine: MakeEngine | None) -> RunActors:
    """Start the processes of the run, which wait for its rows."""
    with span("ask for actors"):
        return RunActors(config, cluster, make_engine, placement=placement, alone=cluster.log_dir is not None)


def _read_inputs(
    config: Config, run_dir: RunDirectory, console: Console, progress: Progress, *, is_command: bool
) -> _Inputs:
    """Check model and settings, read the rows, and tell of both; raises a RayqdError that says what is wrong.

    `is_command`: this process is the command's own, and nobody else wants all of transformers of it.
    """
    progress.status("checking model and configuration")
    with span("import transformers"):
        if is_command:
            import_transformers()
        from rayqd.driver.preflight import check, describe_data, load_data
    with span("check model and settings"):
        checked = check(config)
    with span("read data"):
        training, heldout = load_data(checked, config, partial(progress.bar, "tokenizing"))
        data = summarize_data(checked.tokenizer, checked.directory, config, training, heldout)
        begin_audit(run_dir, config, training.sizes)
        write_data(run_dir.path, data)
        for line in extend(run_dir, config):
            progress.say(line)
    for line in (*checked.remarks, *describe_data(training, heldout), *first_row_lines(data, console.width)):
        progress.say(line)
    return _Inputs(checked=checked, training=training, heldout=heldout)


def _check_gpu_memory(checked: Checked, config: Config, placement: Placement) -> None:
    from rayqd.driver.preflight import check_gpu_memory

    with span("check memory"):
        check_gpu_memory(checked, config, placement)
