"""A connection to Ray: a cluster that runs already, or one of this machine's own that ends with the run."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray

from rayqd.cluster.files import nodes_of, read_cluster_file
from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.observe.quiet import quiet_environment

NODE_ID = "ray.io/node-id"
NODE_GROUP = "ray.io/node-group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    nodes: Nodes  # those that run, and those that its autoscaler would start
    node_id: str  # where the driver is, which outlives every other node as far as the run is concerned
    log_dir: Path | None  # of the processes' output; None on a cluster that is not this machine's own


@contextmanager
def connect(config: Config) -> Iterator[Cluster]:
    """Ray, for the length of a `with`; leaving it ends every process of the run."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    try:
        context: Any = ray.init(
            address=address or "local",
            namespace="rayqd",
            include_dashboard=None if address else config.ray.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": quiet_environment() | _train_environment(config)},
        )
    except (ConnectionError, ValueError) as error:
        raise PlacementError(f"no Ray cluster answers at {address}: {_why(error)}") from error
    try:
        here = ray.get_runtime_context()
        promise = config.ray.cluster_file or (_read_by_the_autoscaler(here.gcs_address) if address else None)
        yield Cluster(
            nodes=_nodes(promise, may_be_more=address is not None),
            node_id=here.get_node_id(),
            log_dir=None if address else Path(context.address_info["session_dir"]) / "logs",
        )
    finally:
        ray.shutdown()


def _why(error: Exception) -> str:
    if "InvalidAuthToken" in f"{error} {error.__cause__}":
        return "it wants a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless it is in ~/.ray/auth_token"
    return str(error).splitlines()[0]


def _nodes(promise: Path | None, *, may_be_more: bool) -> Nodes:
    """The nodes that run, and what the file promises beyond them."""
    running = _running()
    if promise is None:
        return Nodes(groups=running, may_be_more=may_be_more)
    promised = nodes_of(read_cluster_file(promise))
    counts = Counter({group.name: group.running for group in running})
    new = [replace(g, running=0, startable=max(0, g.startable - counts[g.name])) for g in promised.groups]
    num_workers = sum(counts.values()) - 1
    left = None if promised.max_new_nodes is None else max(0, promised.max_new_nodes - num_workers)
    return Nodes(groups=(*running, *(group for group in new if group.startable)), max_new_nodes=left)


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


def _read_by_the_autoscaler(gcs_address: str) -> Path | None:
    """The cluster file of the autoscaler of this very cluster, where it runs on this machine, as after `ray up`."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        file = next((word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")), "")
        if file and f"--gcs-address={gcs_address}" in words and Path(file).expanduser().is_file():
            return Path(file).expanduser()
    return None


def _train_environment(config: Config) -> dict[str, str]:
    return {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.ray.placement_timeout_seconds),
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1" if config.ray.dashboard else "0",
    }
