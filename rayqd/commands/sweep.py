"""The composition root of `rayqd sweep`.

check every combination ─► start Ray ─► Ray Tune: trials side by side, each an ordinary run
                                              │              teachers and data are shared
        table, best.toml, report.html  ◄──────┘
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console

from rayqd.actors.connection import connect
from rayqd.config import Config
from rayqd.config.sweep import SweepSpec
from rayqd.console.progress import Progress
from rayqd.console.say import say
from rayqd.driver.dtype import describe_dtype
from rayqd.driver.preflight import Checked, check, load_data
from rayqd.errors import ConfigError, RunError
from rayqd.files import write_text
from rayqd.losses.check import check_loss
from rayqd.rollout.worker import MakeEngine
from rayqd.runs.environment import collect_environment
from rayqd.sweep.callback import SweepCallback
from rayqd.sweep.concurrency import choose_concurrency, place_concurrent_trials
from rayqd.sweep.directory import SweepDirectory
from rayqd.sweep.report import write_page
from rayqd.sweep.results import SweepResult, format_best_toml, print_result
from rayqd.sweep.shared import Data, Key, data_key, teacher_key
from rayqd.sweep.study import Study
from rayqd.sweep.suggest import SuggesterSearch
from rayqd.sweep.trial_run import TrialResources
from rayqd.sweep.trials import Outcome
from rayqd.sweep.tuner import run_trials, start_shared_resources

# Processes that Ray starts at a time. On two cores it would start two, and warn of eight, which two trials have.
STARTUP_CONCURRENCY = ("RAY_worker_maximum_startup_concurrency", str(max(4, os.cpu_count() or 1)))


def sweep(
    spec: SweepSpec, console: Console | None = None, *, resume: bool = False, make_engine: MakeEngine | None = None
) -> SweepResult:
    """Run every trial that has not ended yet.

    `resume` refuses to begin a sweep anew. Raises a RayqdError that says in one line what is wrong.
    """
    console = console or Console()
    study = Study(spec)
    is_new = not (study.base.run_dir / "sweep.toml").exists()
    if is_new and resume:
        raise RunError(f"{study.base.run_dir} has no sweep to resume: leave --resume out to begin it")
    data = (
        check_and_load(study.example_configs()) if is_new else {}
    )  # before anything is written: it may be mended under the same name
    directory = SweepDirectory(study.base, study.sweep)
    try:
        before = directory.outcomes()
        if sum(outcome.ended for outcome in before) < study.num_trials:
            _run(study, before, directory, data, console, make_engine)
        else:
            say(console, f"{directory.path} has finished already; this is its result")
        return write_results(study, directory, console)
    finally:
        directory.close()


def _run(
    study: Study,
    before: Sequence[Outcome],
    directory: SweepDirectory,
    data: Data,
    console: Console,
    make_engine: MakeEngine | None,
) -> None:
    ended = [outcome for outcome in before if outcome.ended]
    num_left = study.num_trials - len(ended)
    with Progress(console, study.base.learner.steps) as progress:
        progress.say(f"{study.base.name}: {study}")
        if remark := describe_dtype(study.base, study.base):
            progress.say(remark)
        progress.status("starting Ray")
        os.environ.setdefault(*STARTUP_CONCURRENCY)
        with connect(study.base, progress.say) as cluster:
            directory.link_logs(cluster.log_dir)
            wanted = study.sweep.max_concurrent
            examples = study.example_configs()
            num_concurrent = min(num_left, wanted or choose_concurrency(examples, cluster.nodes, num_left))
            placement = place_concurrent_trials(examples, num_concurrent, cluster.nodes)
            if ended:
                progress.say(f"{len(ended)} of {study.num_trials} trials have ended already")
            progress.say(f"{num_left} trials, {num_concurrent} at a time")
            callback = SweepCallback(progress, directory, study, num_ended=len(ended))
            run_trials(
                SuggesterSearch(study.make_suggester(before), callback.begin, study.sweep.metric),
                num_left,
                num_concurrent,
                halving=study.halving,
                ended=ended,
                metric=study.sweep.metric,
                callback=callback,
                directory=directory.path,
                shared=start_shared_resources(study.base.name, placement, data),
                resources=TrialResources(
                    cluster=cluster,
                    placement=placement,
                    environment=collect_environment(cluster.size, study.base),
                    make_engine=make_engine,
                ),
            )


def write_results(study: Study, directory: SweepDirectory, console: Console) -> SweepResult:
    """Write and print what the trials have come to."""
    result = SweepResult.of(study, directory.outcomes())
    directory.finish(result)
    if result.best:
        write_text(directory.path / "best.toml", format_best_toml(study, result.best))
    write_page(result, directory.path)
    print_result(console, result, directory.path)
    return result


def check_and_load(examples: Sequence[Config]) -> Data:
    """Return the data of trials like `examples`; raises what is wrong with it, or with a model, grid or teacher."""
    if any(example.distill.seq_kd for example in examples):
        raise ConfigError(
            "distill.seq_kd: the trials of a sweep do not each write: let `rayqd generate --model teacher "
            "--out teacher.jsonl` write once, and set data.source to teacher.jsonl"
        )
    data: Data = {}
    checked: dict[Key, Checked] = {}
    for example in examples:
        key = (example.model.model_dump_json(), example.quant.model_dump_json(), teacher_key(example))
        if key not in checked:
            checked[key] = check(example)
        check_loss(example)
        if data_key(example) not in data:
            data[data_key(example)] = load_data(checked[key], example)
    return data
