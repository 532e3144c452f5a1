"""`rayqd sweep --dry-run`: everything that is checked before Ray starts, of every trial."""

from __future__ import annotations

from rich.console import Console

from rayqd.cluster.placement import best_plan
from rayqd.commands.cluster import print_roles
from rayqd.commands.dry_run import GOOD_END, find_nodes
from rayqd.commands.sweep import check_and_load
from rayqd.config.sweep import SweepSpec
from rayqd.console.result_table import short_path
from rayqd.console.say import say
from rayqd.driver.preflight import describe_data
from rayqd.sweep.concurrency import choose_concurrency, combine_trials, place_concurrent_trials
from rayqd.sweep.directory import describe_sweep_dir
from rayqd.sweep.study import Study


def dry_run_sweep(spec: SweepSpec, console: Console | None = None) -> int:
    """Check every trial as `sweep` does, start and write nothing, and tell what the sweep would be; returns 0.

    Raises a RayqdError that says in one line what the sweep would end with.
    """
    console = console or Console()
    study = Study(spec)
    config = study.base
    say(console, f"dry run of {config.name}: {study}")
    state = describe_sweep_dir(config, study.sweep)
    for training, heldout in check_and_load(study.example_configs()).values():
        for line in describe_data(training, heldout):
            say(console, line)
    nodes, where = find_nodes(config)
    if nodes is None:
        say(console, f"cluster   {where}: how many trials run at a time depends on its nodes")
    else:
        examples = study.example_configs()
        wanted = study.sweep.max_concurrent
        num_concurrent = min(study.num_trials, wanted or choose_concurrency(examples, nodes, study.num_trials))
        place_concurrent_trials(examples, num_concurrent, nodes)
        say(console, f"cluster   {where}: {nodes.cpus:g} CPUs, {nodes.gpus} GPUs: {num_concurrent} trials at a time")
        combined = combine_trials(examples, num_concurrent)
        print_roles(console, combined, best_plan(combined, nodes))
    learner = config.learner
    say(console, f"trials    {study.num_trials:,} of at most {learner.steps:,} steps")
    say(console, f"directory {short_path(config.run_dir)}: {state}")
    say(console, GOOD_END)
    return 0
