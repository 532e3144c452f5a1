"""A connection to Ray: a cluster that runs already, or one of this machine's own that ends with the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rayqd.actors.topology import nodes_of_the_cluster, nodes_of_this_machine
from rayqd.cluster.check import checked_cluster_file
from rayqd.cluster.nodes import Nodes
from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.observe.quiet import quiet_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    nodes: Nodes  # those that run, and those that its autoscaler would start
    node_id: str  # where the driver is, which outlives every other node as far as the run is concerned
    log_dir: Path | None  # of the processes' output; None on a cluster that is not this machine's own


@contextmanager
def connect(config: Config) -> Iterator[Cluster]:
    """Ray, for the length of a `with`; leaving it ends every process of the run."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    named = checked_cluster_file(config.ray.cluster_file) if address and config.ray.cluster_file else None
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
        yield Cluster(
            nodes=nodes_of_the_cluster(named) if address else nodes_of_this_machine(),
            node_id=ray.get_runtime_context().get_node_id(),
            log_dir=None if address else Path(context.address_info["session_dir"]) / "logs",
        )
    finally:
        ray.shutdown()


def _why(error: Exception) -> str:
    if "InvalidAuthToken" in f"{error} {error.__cause__}":
        return "it wants a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless it is in ~/.ray/auth_token"
    return str(error).splitlines()[0]


def _train_environment(config: Config) -> dict[str, str]:
    return {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.ray.placement_timeout_seconds),
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1" if config.ray.dashboard else "0",
    }
