"""`rayqd compare @file --dry-run`: everything that is checked before anything starts, and what is there of each run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from rayqd.cluster.placement import best_plan
from rayqd.commands.cluster import print_roles
from rayqd.commands.compare_arms import check_baselines, check_runs, count_concurrent, describe_jobs, trained_if_known
from rayqd.commands.dry_run import GOOD_END, find_nodes
from rayqd.comparison.directory import read_failures, shared_config
from rayqd.comparison.execute import is_finished
from rayqd.comparison.jobs import Job, Jobs
from rayqd.config.comparison import ComparisonSpec
from rayqd.console.result_table import short_path
from rayqd.console.say import say
from rayqd.console.tables import Column, print_table
from rayqd.driver.preflight import describe_data
from rayqd.runs.directory import describe_run_dir
from rayqd.sweep.concurrency import combine_trials, place_concurrent_trials

_COLUMNS = (
    Column(heading="run", is_label=True),
    Column(heading="made by", is_words=True, rank=2),
    Column(heading="steps", rank=1),
    Column(heading="", is_words=True),
)


def dry_run_compare(spec: ComparisonSpec, console: Console | None = None) -> int:
    """Check every arm as `compare_arms` does, start and write nothing, and tell what would be run; returns 0.

    Raises a RayqdError that says in one line what the comparison would end with.
    """
    console = console or Console()
    jobs = Jobs(spec)
    say(console, f"dry run of {jobs.base.name}: {describe_jobs(jobs)}")
    check_baselines(jobs)
    trained = trained_if_known(jobs)
    runs = [*jobs.baselines(), *jobs.pilots(), *trained]
    data, _ = check_runs(jobs, runs)
    for training, heldout in data.values():
        for line in describe_data(training, heldout):
            say(console, line)
    _show_cluster(console, jobs, [job for job in [*jobs.pilots(), *trained] if not is_finished(job)])
    failures = read_failures(jobs.base.run_dir)
    rows = [[job.name, _maker(job), _steps(job), _state(job, failures)] for job in runs]
    known = {job.arm.name for job in trained}
    unknown = [arm.name for arm in jobs.trained_arms if arm.name not in known]
    rows += [[f"{name}-seed={seed}", "rayqd distill", "?", "a new run"] for seed in jobs.seeds for name in unknown]
    print_table(console, _COLUMNS, rows)
    if unknown:
        say(console, f"?         the pilot says how many steps {spec.compare.amount:,.10g} {spec.compare.budget} are")
    left = len(unknown) * len(jobs.seeds) + sum(not is_finished(job) for job in runs)
    say(console, f"runs      {left} to be run, {len(rows) - left} have finished")
    if number := jobs.base.eval.continuations:
        say(
            console, f"own text  once all have ended, each run's student goes on from {number} prompts of held-out rows"
        )
    state = describe_run_dir(shared_config(jobs), "compare").replace("run", "comparison")
    say(console, f"directory {short_path(jobs.base.run_dir)}: {state}")
    say(console, GOOD_END)
    return 0


def _show_cluster(console: Console, jobs: Jobs, left: list[Job]) -> None:
    """Print how many of the runs that are `left` train at a time, and what they ask for together."""
    if not left:
        return
    nodes, where = find_nodes(jobs.base)
    if nodes is None:
        say(console, f"cluster   {where}: how many runs train at a time depends on its nodes")
        return
    examples = [job.config for job in left]
    num_concurrent = count_concurrent(jobs, examples, nodes)
    place_concurrent_trials(examples, num_concurrent, nodes)
    say(console, f"cluster   {where}: {nodes.cpus:g} CPUs, {nodes.gpus} GPUs: {num_concurrent} runs train at a time")
    combined = combine_trials(examples, num_concurrent)
    print_roles(console, combined.model_copy(update={"name": jobs.base.name}), best_plan(combined, nodes))


def _maker(job: Job) -> str:
    return "others, and measured" if job.arm.is_made_elsewhere else f"rayqd {job.arm.command}"


def _steps(job: Job) -> str:
    return f"{job.config.learner.steps:,}" if job.arm.trains else ""


def _state(job: Job, failures: Mapping[str, str]) -> str:
    if not is_finished(job) and job.name in failures:
        return "failed, and would be tried again"
    return describe_run_dir(job.config, job.arm.command).removeprefix("a run that ")
