"""`rayqd cluster validate`: whether a cluster file is right, and where on its nodes the roles of a run will land."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rayqd.cluster.bin_packing import ROLES, PlacementPlan
from rayqd.cluster.check import find_warnings, load_valid_cluster_file
from rayqd.cluster.files import ClusterFile, parse_nodes
from rayqd.cluster.nodes import MARKET, NodeGroup, Nodes, Selector
from rayqd.cluster.placement import best_plan, format_nodes, num_workers, place
from rayqd.config import Config
from rayqd.console.say import say
from rayqd.console.tables import Column, print_table

_MANY = 10_000
_SLOW_TO_START_SECONDS = 600  # a machine of a cloud, its driver and its packages


def validate(path: Path, config: Config, console: Console) -> int:
    """Print nodes and roles; raises ConfigError at a wrong key, PlacementError if the run can never fit."""
    file = load_valid_cluster_file(path)
    nodes = parse_nodes(file)
    plan = best_plan(config, nodes)
    _print_nodes(console, file, nodes, plan)
    print_roles(console, config, plan)
    for warning in dict.fromkeys(f"{file.location(*doubt.keys)}: {doubt}" for doubt in find_warnings(file)):
        say(console, f"look at {warning}")
    place(config, nodes)
    say(console, _verdict(config, plan))
    return 0


_NODE_COLUMNS = (
    Column(heading="node type", is_label=True),
    Column(heading="CPUs"),
    Column(heading="GPUs"),
    Column(heading="nodes"),
    Column(heading="market", is_words=True, rank=2),
    Column(heading="this run starts", rank=1),
)
_ROLE_COLUMNS = (
    Column(heading="role", is_words=True),
    Column(heading="workers"),
    Column(heading="each asks for", is_words=True),
    Column(heading="on nodes with", is_label=True, rank=1),
    Column(heading="lands on", is_label=True),
)


def _print_nodes(console: Console, file: ClusterFile, nodes: Nodes, plan: PlacementPlan) -> None:
    most = "" if nodes.max_new_nodes is None else f", at most {nodes.max_new_nodes} beside the head"
    rows = [
        [
            Text(group.name),
            f"{group.cpus:g}",
            f"{group.gpus}",
            _range(group),
            group.labels.get(MARKET, "-"),
            "-" if group.running else str(plan.nodes_to_start[group.name]),
        ]
        for group in nodes.groups
    ]
    print_table(console, _NODE_COLUMNS, rows, title=f"{file.path}: {_describe_kind(file)}{most}")


def print_roles(console: Console, config: Config, plan: PlacementPlan) -> None:
    """Print what each role of a run asks Ray for, and on which nodes it would land."""
    roles = [role for role in ROLES if num_workers(config)[role]]
    rows = [_role_cells(role, config, plan) for role in roles]
    print_table(console, _ROLE_COLUMNS, rows, title=f"{config.name}: what its roles ask for, and where they land")


def _role_cells(role: str, config: Config, plan: PlacementPlan) -> list[str | Text]:
    workers = plan.of_role(role)
    landing = Counter(worker.group.name for worker in workers)
    selectors = dict.fromkeys(_labels(worker.selector) for worker in workers)
    places = [f"{name} ({number})" for name, number in landing.items()]
    if plan.unplaced[role]:
        places.append(f"no room ({plan.unplaced[role]})")
    asked = " or ".join(selectors) or "-"
    return [role, str(num_workers(config)[role]), _asks(role, plan), Text(asked), Text(", ".join(places))]


def _asks(role: str, plan: PlacementPlan) -> str:
    share = plan.share
    gpus = share.gpus(role)
    gpu = "" if not gpus else ", 1 GPU" if gpus == 1 else f", 1/{share.per_gpu} GPU"
    return f"{share.cpus:g} CPU{gpu}"


def _labels(selector: Selector) -> str:
    return ", ".join(f"{key.removeprefix('ray.io/')}={value}" for key, value in selector.items()) or "any"


def _verdict(config: Config, plan: PlacementPlan) -> str:
    if not plan.nodes_to_start:
        return "every role fits on nodes that run already"
    timeout = config.ray.placement_timeout_seconds
    waits = f"waits for {format_nodes(plan.nodes_to_start)}, ray.placement_timeout_seconds={timeout:g} at most"
    text = f"every role fits; the run {waits}"
    if timeout < _SLOW_TO_START_SECONDS:
        text += ": a cloud's GPU machine takes minutes to start, so give it more"
    return text


def _describe_kind(file: ClusterFile) -> str:
    return f"ray up, {file.ray_up['provider']['type']}" if file.kind == "ray up" else f"KubeRay's {file.kind}"


def _range(group: NodeGroup) -> str:
    if group.running:
        return str(group.running)
    if group.startable >= _MANY:
        return f"{group.always} or more"
    return f"{group.always}-{group.startable}" if group.always != group.startable else str(group.startable)
