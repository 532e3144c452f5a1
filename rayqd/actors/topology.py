"""The nodes of the cluster that this process is connected to, and which of them this process is on."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import importlib
import math
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, cast

import psutil
import ray
from ray import PlacementGroupID
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError
from ray.util import placement_group_table  # pyright: ignore[reportUnknownVariableType]
from ray.util.placement_group import PlacementGroup, remove_placement_group

from rayqd.cluster.files import ClusterFile, parse_nodes, read_cluster_file
from rayqd.cluster.nodes import MARKET, NodeGroup, Nodes

NODE_ID = "ray.io/node-id"
NODE_GROUP = "ray.io/node-group"


class _Node(TypedDict):
    """What Ray tells of a node, as far as it is read here."""

    Alive: bool
    Labels: dict[str, str]
    NodeManagerHostname: str
    Resources: dict[str, float]


def list_local_nodes() -> Nodes:
    """Return the one node of a Ray that was started here, and ends with the run."""
    return Nodes(groups=_list_running())


def list_cluster_nodes(cluster_file: ClusterFile | None) -> Nodes:
    """Return the nodes that run and those that may start, by `cluster_file`, else by the autoscaler's own file.

    Ray does not tell its limits to whom it serves. Where the autoscaler runs beside this process, as on the head after
    `ray up`, its command line names its file.
    """
    file = cluster_file or _find_autoscaler_file(cast("str", ray.get_runtime_context().gcs_address))
    running = _list_running()
    if file is None:
        return Nodes(groups=running, may_be_more=True)
    promised = parse_nodes(file)
    counts: Counter[str] = Counter()
    for group in running:
        counts[group.name] += group.running
    new = [replace(group, running=0, startable=group.startable - counts[group.name]) for group in promised.groups]
    num_workers = counts.total() - 1  # beside the head
    limit = promised.max_new_nodes
    return Nodes(
        groups=(*running, *(group for group in new if group.startable > 0)),
        max_new_nodes=None if limit is None else max(0, limit - num_workers),
    )


def describe_node() -> str:
    """Return the name of this process's node, `gpu-spot 10.0.0.7 (spot)`; empty if it has but an address."""
    labels = cast("dict[str, str]", ray.get_runtime_context().get_node_labels())  # lists, says Ray's signature
    group, market = labels.get(NODE_GROUP, ""), labels.get(MARKET, "")
    address = cast("str", ray.util.get_node_ip_address()) if group or market else ""
    return " ".join(part for part in (group, address, f"({market})" if market else "") if part)


def smallest_object_store() -> float:
    """Return the bytes of the object store of the node that has the least; infinite where Ray does not say."""
    nodes = (node["Resources"] for node in cast("list[_Node]", ray.nodes()) if node["Alive"])
    return min((resources.get("object_store_memory", math.inf) for resources in nodes), default=math.inf)


def find_log_dir() -> Path:
    """Return where Ray keeps this node's logs, for as long as its session lasts; else where temporary files are."""
    worker: Any = importlib.import_module("ray._private.worker")  # nothing public says where
    node = getattr(worker, "_global_node", None)
    return Path(node.get_logs_dir_path() if node else tempfile.gettempdir())


def stall_file(name: str) -> Path:
    """Return where the actor or worker of that name, `mine/rollout-0`, leaves word of where it stood still."""
    return find_log_dir() / f"rayqd-{name.replace('/', '-')}-stall.txt"


def remove_placement_groups() -> None:
    """Free all that is reserved on a Ray that is this run's alone; what runs there ends."""
    table = cast("dict[str, dict[str, str]]", placement_group_table())
    for group, described in table.items():
        if described["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def anything_waits_for_room() -> bool:
    """Return whether an actor or a placement group is on the cluster that no node has room for at present.

    Those that have their place, and whose process is slow to start, do not count. True where Ray does not say.
    """
    try:
        status = get_cluster_status(cast("str", ray.get_runtime_context().gcs_address))
    except RayError:  # through Ray Client its address may be out of reach
        return True
    demands = status.resource_demands
    return bool(demands.ray_task_actor_demand or demands.placement_group_demand)


def _list_running() -> tuple[NodeGroup, ...]:
    """Nodes that are alive, those of one kind together."""
    num_alike: Counter[tuple[str, float, int, frozenset[tuple[str, str]]]] = Counter()
    for node in cast("list[_Node]", ray.nodes()):
        if node["Alive"]:
            labels = {key: value for key, value in node["Labels"].items() if key != NODE_ID}
            name = labels.get(NODE_GROUP, node["NodeManagerHostname"])
            resources = node["Resources"]
            num_alike[name, resources.get("CPU", 0), int(resources.get("GPU", 0)), frozenset(labels.items())] += 1
    return tuple(
        NodeGroup(name=name, cpus=cpus, gpus=gpus, labels=dict(labels), running=count, startable=0)
        for (name, cpus, gpus, labels), count in num_alike.items()
    )


def _find_autoscaler_file(gcs_address: str) -> ClusterFile | None:
    for process in psutil.process_iter(["cmdline"]):
        words: list[str] = process.info["cmdline"] or []
        file = next((word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")), "")
        if file and f"--gcs-address={gcs_address}" in words:
            return read_cluster_file(Path(file).expanduser())
    return None
