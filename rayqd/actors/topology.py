"""The nodes of the cluster that this process is connected to, and which of them this process is on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray

from rayqd.cluster.files import ClusterFile, parse_nodes, read_cluster_file
from rayqd.cluster.nodes import MARKET, NodeGroup, Nodes

NODE_ID = "ray.io/node-id"
NODE_GROUP = "ray.io/node-group"


def nodes_of_this_machine() -> Nodes:
    """For a Ray that was started here, and ends with the run."""
    return Nodes(groups=_running())


def nodes_of_the_cluster(named: ClusterFile | None) -> Nodes:
    """The nodes that run, and those that may be started: as the file `named` says, else the autoscaler's own.

    Ray does not tell its limits to whom it serves. Where the autoscaler runs beside this process, as on the head after
    `ray up`, its command line names its file.
    """
    file = named or _file_of_the_autoscaler(ray.get_runtime_context().gcs_address)
    running = _running()
    if file is None:
        return Nodes(groups=running, may_be_more=True)
    promised = parse_nodes(file)
    counts: Counter[str] = Counter()
    for group in running:
        counts[group.name] += group.running
    new = [replace(each, running=0, startable=each.startable - counts[each.name]) for each in promised.groups]
    num_workers = counts.total() - 1  # beside the head
    limit = promised.max_new_nodes
    return Nodes(
        groups=(*running, *(group for group in new if group.startable > 0)),
        max_new_nodes=None if limit is None else max(0, limit - num_workers),
    )


def whereabouts() -> str:
    """This process's node, if it has more of a name than its address: `gpu-spot 10.0.0.7 (spot)`."""
    labels: dict[str, Any] = ray.get_runtime_context().get_node_labels()
    group, market = labels.get(NODE_GROUP, ""), labels.get(MARKET, "")
    address = ray.util.get_node_ip_address() if group or market else ""
    return " ".join(part for part in (group, address, f"({market})" if market else "") if part)


def _running() -> tuple[NodeGroup, ...]:
    """Nodes that are alive, those of one kind together."""
    alike: Counter[tuple[str, float, int, frozenset[tuple[str, str]]]] = Counter()
    for node in ray.nodes():
        if node["Alive"]:
            labels = {key: value for key, value in node["Labels"].items() if key != NODE_ID}
            name = labels.get(NODE_GROUP, node["NodeManagerHostname"])
            resources = node["Resources"]
            alike[name, resources.get("CPU", 0), int(resources.get("GPU", 0)), frozenset(labels.items())] += 1
    return tuple(
        NodeGroup(name=name, cpus=cpus, gpus=gpus, labels=dict(labels), running=count, startable=0)
        for (name, cpus, gpus, labels), count in alike.items()
    )


def _file_of_the_autoscaler(gcs_address: str) -> ClusterFile | None:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        file = next((word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")), "")
        if file and f"--gcs-address={gcs_address}" in words:
            return read_cluster_file(Path(file).expanduser())
    return None
