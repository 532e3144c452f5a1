"""`--dry-run`: everything that is checked before anything starts, and what would be asked of Ray."""

from __future__ import annotations

import numpy as np
import torch
from ray._private.utils import get_num_cpus
from rich.console import Console

from rayqd.cluster.check import load_valid_cluster_file
from rayqd.cluster.files import parse_nodes
from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.cluster.placement import best_plan, num_workers, place
from rayqd.commands.cluster import print_roles
from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.console.data import first_row_lines
from rayqd.console.progress import headline
from rayqd.console.result_table import short_path
from rayqd.console.say import say
from rayqd.data import ExampleSet, calibration_sequences
from rayqd.data.run_data import examples_by_weight, weights_of
from rayqd.data.summary import summarize_data
from rayqd.driver.dtype import check_machine, describe_dtype
from rayqd.driver.frozen import describe_date, with_frozen_settings
from rayqd.driver.preflight import Checked, check, check_gpu_memory, describe_data, load_data
from rayqd.model.calibration import check_method
from rayqd.model.calibration.check import check_layer_by_layer
from rayqd.model.load import load_meta_model
from rayqd.runs.directory import describe_run_dir

GOOD_END = "nothing is in the way; nothing was started or written"


def dry_run(config: Config, console: Console | None = None) -> int:
    """Check `config` as `distill` does, start and write nothing, and tell what the run would be; returns 0.

    Raises a RayqdError that says in one line what the run would end with.
    """
    console = console or Console()
    asked = with_absolute_paths(config)
    config = with_frozen_settings(asked)
    say(console, f"dry run of {headline(config)}")
    for remark in filter(None, (describe_dtype(asked, config), describe_date(asked, config))):
        say(console, remark)
    state = describe_run_dir(config)
    check_machine(config, runs_vllm=config.is_on_policy or config.distill.seq_kd)
    checked = check(config)
    training, heldout = load_data(checked, config)
    for remark in checked.remarks:
        say(console, remark)
    for line in describe_data(training, heldout):
        say(console, line)
    data = summarize_data(checked.tokenizer, checked.directory, config, training, heldout)
    for line in first_row_lines(data, console.width):
        say(console, line)
    _show_roles(console, config, checked)
    say(
        console,
        f"steps     {config.learner.steps:,} of {config.learner.batch_size} sequences, {_tokens(config, training)}",
    )
    say(console, f"directory {short_path(config.run_dir)}: {state}")
    if config.storage:
        say(console, f"storage   {config.storage}/{config.name}")
    say(console, GOOD_END)
    return 0


def dry_run_quantize(config: Config, console: Console | None = None) -> int:
    """Check `config` as `quantize` does, load and write nothing, and tell what would be done; returns 0.

    Raises a RayqdError that says in one line what the command would end with.
    """
    console = console or Console()
    asked = with_absolute_paths(config)
    config = with_frozen_settings(asked)
    method = config.quant.method
    say(console, f"dry run of {headline(config)}")
    for remark in filter(None, (describe_dtype(asked, config), describe_date(asked, config))):
        say(console, remark)
    check_method(method, config.quant)
    state = describe_run_dir(config, "quantize")
    check_machine(config, runs_vllm=False)
    checked = check(config, trains=False)
    check_layer_by_layer(load_meta_model(checked.directory).config, method)
    training, heldout = load_data(checked, config)
    for remark in (*checked.remarks, *describe_data(training, heldout)):
        say(console, remark)
    data = summarize_data(checked.tokenizer, checked.directory, config, training, heldout, trains=False)
    for line in first_row_lines(data, console.width):
        say(console, line)
    sequences = calibration_sequences(examples_by_weight(training, config), config.quant.calibration_tokens)
    rows = f"{sum(map(len, sequences)):,} tokens of {len(sequences):,} rows"
    say(console, f"method    {method}" + ("" if method == "rtn" else f", calibrated on {rows}"))
    say(console, f"directory {short_path(config.run_dir)}: {state}")
    say(console, GOOD_END)
    return 0


def _show_roles(console: Console, config: Config, checked: Checked) -> None:
    nodes, where = find_nodes(config)
    if nodes is None:
        counts = ", ".join(f"{count} {role}" for role, count in num_workers(config).items() if count)
        say(console, f"cluster   {where}: {counts} workers; what each gets depends on its nodes")
        say(
            console,
            "          `rayqd cluster validate FILE` counts them for the cluster's file, or set ray.cluster_file",
        )
        return
    say(console, f"cluster   {where}: {nodes.cpus:g} CPUs, {nodes.gpus} GPUs")
    print_roles(console, config, best_plan(config, nodes))
    placement = place(config, nodes)
    if not config.ray.cluster_address:
        check_gpu_memory(checked, config, placement)


def find_nodes(config: Config) -> tuple[Nodes | None, str]:
    """Return the nodes that the run could have, None where only the cluster itself knows, and what they are."""
    if config.ray.cluster_file:
        return parse_nodes(load_valid_cluster_file(config.ray.cluster_file)), str(config.ray.cluster_file)
    if address := config.ray.cluster_address:
        return None, address
    cpus, gpus = float(get_num_cpus()), torch.cuda.device_count()
    here = NodeGroup(name="this machine", cpus=cpus, gpus=gpus, labels={}, running=1, startable=0)
    return Nodes(groups=(here,)), "a Ray of this machine's own"


def _tokens(config: Config, training: ExampleSet) -> str:
    """Say how many tokens a step has by the data's mean lengths, rollouts at their longest, and at most."""
    lengths = [[(len(e.prompt_ids), len(e.completion_ids)) for e in part.examples] for part in training.parts]
    means = [np.mean(of_source, axis=0) for of_source in lengths]
    prompt, completion = np.average(means, axis=0, weights=weights_of(config))
    share = config.distill.lmbda
    longest = min(config.rollout.max_new_tokens, config.data.max_length)
    mean = prompt + share * longest + (1 - share) * completion
    size = config.learner.batch_size
    return f"about {size * mean:,.0f} tokens a step, {size * config.data.max_length:,} at most"
