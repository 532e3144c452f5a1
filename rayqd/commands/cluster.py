"""`rayqd cluster validate`: whether a cluster file is right, and where on its nodes the roles of a run will land."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rayqd.cluster.bin_packing import ROLES, Seating
from rayqd.cluster.check import checked_cluster_file, doubts
from rayqd.cluster.files import ClusterFile, nodes_of
from rayqd.cluster.nodes import MARKET, NodeGroup, Nodes, Selector
from rayqd.cluster.placement import best_seating, nodes_text, num_workers, place
from rayqd.config import Config

_MANY = 10_000
_SLOW_TO_START_SECONDS = 600  # a machine of a cloud, its driver and its packages


def validate(path: Path, config: Config, console: Console) -> int:
    """Prints nodes and roles; raises ConfigError at a wrong key, PlacementError if the run can never fit."""
    file = checked_cluster_file(path)
    nodes = nodes_of(file)
    seating = best_seating(config, nodes)
    console.print(_node_table(file, nodes, seating))
    console.print(_role_table(config, seating))
    for keys, text in dict.fromkeys((file.place(*doubt.keys), str(doubt)) for doubt in doubts(file)):
        _say(console, f"look at {keys}: {text}")
    place(config, nodes)
    _say(console, _verdict(config, seating))
    return 0


def _node_table(file: ClusterFile, nodes: Nodes, seating: Seating) -> Table:
    most = "" if nodes.max_new_nodes is None else f", at most {nodes.max_new_nodes} beside the head"
    table = Table(title=f"{file.path}: {_flavour(file)}{most}", title_justify="left")
    for heading in ("node type", "CPUs", "GPUs", "nodes", "market", "this run starts"):
        table.add_column(
            heading, justify="right" if heading in ("CPUs", "GPUs", "nodes", "this run starts") else "left"
        )
    for group in nodes.groups:
        table.add_row(
            group.name,
            f"{group.cpus:g}",
            f"{group.gpus}",
            _range(group),
            group.labels.get(MARKET, "-"),
            "-" if group.running else str(seating.started[group.name]),
        )
    return table


def _role_table(config: Config, seating: Seating) -> Table:
    table = Table(title=f"{config.name}: what its roles ask for, and where they land", title_justify="left")
    for heading in ("role", "workers", "each asks for", "on nodes with", "lands on"):
        table.add_column(heading, justify="right" if heading == "workers" else "left")
    for role in ROLES:
        count = num_workers(config)[role]
        if not count:
            continue
        seats = seating.of(role)
        landing = Counter(seat.group.name for seat in seats)
        selectors = dict.fromkeys(_labels(seat.selector) for seat in seats)
        places = [f"{name} ({number})" for name, number in landing.items()]
        if seating.missing[role]:
            places.append(f"no room ({seating.missing[role]})")
        table.add_row(role, str(count), _asks(role, seating), " or ".join(selectors) or "-", ", ".join(places))
    return table


def _asks(role: str, seating: Seating) -> str:
    share = seating.share
    gpus = share.gpus(role)
    shown = "" if not gpus else ", 1 GPU" if gpus == 1 else f", 1/{share.per_gpu} GPU"
    return f"{share.cpus:g} CPU{shown}"


def _labels(selector: Selector) -> str:
    return ", ".join(f"{key.removeprefix('ray.io/')}={value}" for key, value in selector.items()) or "any"


def _verdict(config: Config, seating: Seating) -> str:
    if not seating.started:
        return "every role fits on nodes that run already"
    timeout = config.ray.placement_timeout_seconds
    waits = f"waits for {nodes_text(seating.started)}, ray.placement_timeout_seconds={timeout:g} at most"
    text = f"every role fits; the run {waits}"
    if timeout < _SLOW_TO_START_SECONDS:
        text += ": a cloud's GPU machine takes minutes to start, so give it more"
    return text


def _flavour(file: ClusterFile) -> str:
    return f"ray up, {file.document['provider']['type']}" if file.kind == "ray up" else f"KubeRay's {file.kind}"


def _range(group: NodeGroup) -> str:
    if group.running:
        return str(group.running)
    if group.startable >= _MANY:
        return f"{group.always} or more"
    return f"{group.always}-{group.startable}" if group.always != group.startable else str(group.startable)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
