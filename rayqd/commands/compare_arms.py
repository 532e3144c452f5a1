"""The composition root of `rayqd compare @file.toml`.

check every arm ─► what is there already? ─► baselines, each in its process ─► Ray: pilots, then the arms that train
                                                                                  │      teachers and data are shared
                    table, compare.json, compare.md, compare.html  ◄──────────────┘
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console

from rayqd.actors.connection import connect
from rayqd.cluster.nodes import Nodes
from rayqd.commands.compare_models import check_arm_model, find_arm_model
from rayqd.commands.sweep import STARTUP_CONCURRENCY, check_and_load
from rayqd.comparison.budget import TIMED, check_pilots, steps_of_arms
from rayqd.comparison.directory import ComparisonDirectory, check_directory
from rayqd.comparison.execute import Trainer, is_finished, run_baselines
from rayqd.comparison.findings import Findings, find
from rayqd.comparison.inputs import Inputs, collect_inputs
from rayqd.comparison.jobs import Job, Jobs
from rayqd.comparison.outcomes import Outcome, by_arm
from rayqd.comparison.own_text import OwnTexts
from rayqd.comparison.table import print_findings
from rayqd.comparison.write import JSON, write_findings
from rayqd.config import Config
from rayqd.config.comparison import ComparisonSpec
from rayqd.console.progress import Progress
from rayqd.console.say import say
from rayqd.driver.dtype import describe_dtype
from rayqd.model.calibration import check_method
from rayqd.rollout.worker import MakeEngine
from rayqd.runs.environment import collect_environment
from rayqd.sweep.concurrency import choose_concurrency, place_concurrent_trials
from rayqd.sweep.shared import Data, data_key
from rayqd.sweep.trial_run import TrialResources
from rayqd.sweep.tuner import start_shared_resources


def compare_arms(
    spec: ComparisonSpec,
    console: Console | None = None,
    *,
    price: float | None = None,
    make_engine: MakeEngine | None = None,
) -> Findings:
    """Run what is missing, and say what it decides. `price` is of an accelerator an hour.

    Raises a RayqdError that says in one line what is wrong. An arm that fails ends none of the others.
    """
    console = console or Console()
    comparison = _Comparison(Jobs(spec), console)
    return comparison.run(price, make_engine)


class _Comparison:
    def __init__(self, jobs: Jobs, console: Console) -> None:
        self._jobs = jobs
        self._console = console
        self._data: Data = {}
        self._inputs: dict[str, Inputs] = {}

    def run(self, price: float | None, make_engine: MakeEngine | None) -> Findings:
        jobs = self._jobs
        check_baselines(jobs)
        self._check([*jobs.baselines(), *self._first_to_train()])
        directory = ComparisonDirectory(jobs)
        try:
            is_new = not all(is_finished(job) for job in [*jobs.baselines(), *self._first_to_train()])
            if is_new:
                self._run_missing(directory, make_engine)
            else:
                say(self._console, f"every run of {directory.path} has finished already; this is what they came to")
            runs = [*jobs.baselines(), *self._first_to_train()]
            if jobs.base.eval.continuations and (is_new or not (directory.path / JSON).exists()):
                self._write(directory, price, None)  # who stops the measuring has a table, or the one from before
            findings = self._write(directory, price, self._measure_own_texts(runs))
            print_findings(self._console, findings, directory.path, price)
            return findings
        finally:
            directory.close()

    def _measure_own_texts(self, runs: Sequence[Job]) -> OwnTexts | None:
        if not self._jobs.base.eval.continuations:
            return None
        from rayqd.commands.compare_own_text import measure_own_texts  # whose evaluations take long to import

        return measure_own_texts(self._jobs, runs, self._data, lambda line: say(self._console, line))

    def _check(self, runs: Sequence[Job]) -> None:
        """Check runs as far as that goes before they start, and that what is there of them is theirs."""
        new = [job for job in runs if job.name not in self._inputs]
        data, inputs = check_runs(self._jobs, new)
        self._data |= data
        self._inputs |= inputs

    def _run_missing(self, directory: ComparisonDirectory, make_engine: MakeEngine | None) -> None:
        jobs = self._jobs
        with Progress(self._console, jobs.base.learner.steps) as progress:
            progress.say(f"{jobs.base.name}: {describe_jobs(jobs)}")
            if remark := describe_dtype(jobs.base, jobs.base):
                progress.say(remark)
            if names := [arm.name for arm in jobs.trained_arms if jobs.spec.asks_learner(arm)]:
                progress.say(
                    f"{', '.join(names)}: the learner answers eval.tasks (eval.where), as nothing is on-policy"
                )
            num_baselines = jobs.spec.compare.max_concurrent or 1
            run_baselines(jobs.baselines(), self._inputs, directory, progress, num_baselines)
            if not all(is_finished(job) for job in self._first_to_train()):
                self._train(directory, progress, make_engine)

    def _first_to_train(self) -> list[Job]:
        return [*self._jobs.pilots(), *trained_if_known(self._jobs)]

    def _train(self, directory: ComparisonDirectory, progress: Progress, make_engine: MakeEngine | None) -> None:
        jobs = self._jobs
        progress.status("starting Ray")
        os.environ.setdefault(*STARTUP_CONCURRENCY)
        with connect(jobs.base, progress.say) as cluster:
            directory.link_logs(cluster.log_dir)
            environment = collect_environment(cluster.size, jobs.base)
            if jobs.spec.compare.budget in TIMED:
                check_pilots(jobs.pilots(), environment)
            examples = [job.config for job in self._first_to_train()]
            num_concurrent = count_concurrent(jobs, examples, cluster.nodes)
            placement = place_concurrent_trials(examples, num_concurrent, cluster.nodes)
            trainer = Trainer(
                directory=directory,
                progress=progress,
                resources=TrialResources(
                    cluster=cluster,
                    placement=placement,
                    environment=environment,
                    make_engine=make_engine,
                ),
                shared=start_shared_resources(jobs.base.name, placement, self._data),
                num_concurrent=num_concurrent,
            )
            trainer.run(jobs.pilots(), self._inputs)
            trained = trained_if_known(jobs)
            if jobs.pilots():
                for line in dict.fromkeys(f"{job.arm.name}: {job.config.learner.steps:,} steps" for job in trained):
                    progress.say(line)
                self._check(trained)
            trainer.run(trained, self._inputs)

    def _write(self, directory: ComparisonDirectory, price: float | None, own_texts: OwnTexts | None) -> Findings:
        jobs = self._jobs
        runs = [*jobs.baselines(), *self._first_to_train()]
        outcomes: list[Outcome] = [directory.outcome(job) for job in runs]
        findings = find(jobs.spec, by_arm(jobs.spec.arms, outcomes), own_texts)
        write_findings(findings, jobs, directory, price)
        return findings


def check_baselines(jobs: Jobs) -> None:
    """Raise ConfigError where the method of an arm without training cannot round to its format.

    Raises ModelError where a model that was made elsewhere is not there, or cannot be measured here.
    """
    for job in jobs.baselines():
        if job.arm.is_made_elsewhere:
            check_arm_model(job)
        else:
            check_method(job.config.quant.method, job.config.quant)


def check_runs(jobs: Jobs, runs: Sequence[Job]) -> tuple[Data, dict[str, Inputs]]:
    """Return the data of `runs`, and what each reads, by its name.

    Raises what is wrong with one as far as that shows before it starts, and what is there of it that is not its own.
    """
    data = check_and_load([job.config for job in runs])
    inputs = {job.name: collect_inputs(job.config, *data[data_key(job.config)], find_arm_model(job)) for job in runs}
    check_directory(jobs, [(job, inputs[job.name]) for job in runs])
    return data, inputs


def trained_if_known(jobs: Jobs) -> list[Job]:
    """Return the runs of the arms that train, as far as the pilots have said how many steps they have."""
    return jobs.trained(steps_of_arms(jobs, jobs.pilots()))


def count_concurrent(jobs: Jobs, examples: Sequence[Config], nodes: Nodes) -> int:
    """Return how many runs train at a time: where seconds are counted, only one, which nobody disturbs."""
    compare = jobs.spec.compare
    if compare.max_concurrent:
        return compare.max_concurrent
    if compare.budget in TIMED:
        return 1
    return choose_concurrency(examples, nodes, len(examples))


def describe_jobs(jobs: Jobs) -> str:
    """Return `rtn, gptq, off-policy and on-policy, 2 seeds, equal steps`."""
    names = [arm.name for arm in jobs.spec.arms]
    seeds = f"{len(jobs.seeds)} seed{'' if len(jobs.seeds) == 1 else 's'}"
    return f"{', '.join(names[:-1])} and {names[-1]}, {seeds}, equal {jobs.spec.compare.budget}"
