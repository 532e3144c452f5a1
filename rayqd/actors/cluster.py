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

from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.observe.quiet import quiet_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    cpus: float
    gpus: float
    cores_per_node: int
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
        raise PlacementError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        yield Cluster(
            cpus=total.get("CPU", 0),
            gpus=total.get("GPU", 0),
            cores_per_node=int(max(node["Resources"].get("CPU", 1) for node in nodes)),
            log_dir=None if address else Path(context.address_info["session_dir"]) / "logs",
        )
    finally:
        ray.shutdown()


def _train_environment(config: Config) -> dict[str, str]:
    return {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.ray.placement_timeout_seconds),
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1" if config.ray.dashboard else "0",
    }
