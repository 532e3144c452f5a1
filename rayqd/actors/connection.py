"""A connection to Ray: a cluster that runs already, or one of this machine's own that ends with the run."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.job_config import JobConfig

from rayqd.actors.exposure import describe_exposure, listen_on_loopback, protect_token
from rayqd.actors.ray_start import start_ray
from rayqd.actors.runtime_env import make_runtime_env
from rayqd.actors.topology import list_cluster_nodes, list_local_nodes
from rayqd.cluster.check import load_valid_cluster_file
from rayqd.cluster.nodes import Nodes
from rayqd.config import Config
from rayqd.console.quiet import quiet_ray_reports, silence_stderr
from rayqd.errors import ConfigError
from rayqd.runs.environment import ClusterSize
from rayqd.spans import span


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The Ray cluster that this process is connected to."""

    nodes: Nodes  # those that run, and those that its autoscaler would start
    node_id: str  # where the driver is, which outlives every other node as far as the run is concerned
    accelerators: tuple[str, ...]  # what Ray calls the GPUs of those that run: "H100"
    dashboard: str  # its address; "" without one
    log_dir: Path | None  # of the processes' output; None on a cluster that is not this machine's own
    store_bytes: float = math.inf  # of the object stores of those that run

    @property
    def size(self) -> ClusterSize:
        """Return what the nodes that run have, for the run's records."""
        groups = self.nodes.groups
        return ClusterSize(
            nodes=sum(group.running for group in groups),
            cpus=sum(group.running * group.cpus for group in groups),
            gpus=sum(group.running * group.gpus for group in groups),
            accelerators=tuple(self.accelerators),
        )


def _ignore(text: str) -> None:
    pass


@contextmanager
def connect(config: Config, notice: Callable[[str], None] = _ignore) -> Generator[Cluster]:
    """Connect to Ray for the length of a `with`; leaving it ends every process of the run.

    `notice` is told where Ray is started again, because it took too long. Raises a RayqdError where it cannot be.
    """
    address = config.ray.cluster_address
    if config.ray.dashboard and not address:
        _check_dashboard()
    cluster_file = load_valid_cluster_file(config.ray.cluster_file) if address and config.ray.cluster_file else None

    def init() -> Any:
        return ray.init(
            address=address or "local",
            namespace="rayqd",
            include_dashboard=None if address else config.ray.dashboard,
            job_config=cast("JobConfig", _job_config(config, address)),  # or None, as Ray's own default is
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={**make_runtime_env(config, ships_package=address is not None)},
            # A worker process for each core, of which no actor would be: theirs have environments of their own.
            _system_config=None if address else {"prestart_worker_first_driver": False},
        )

    quiet_ray_reports()
    with span("start Ray"), _keep_stop_signal(), nullcontext() if address else listen_on_loopback():
        context = start_ray(init, address, notice)
    try:
        if not address:
            protect_token()
            if exposure := describe_exposure():
                notice(exposure)
        resources = cast("dict[str, float]", ray.cluster_resources())
        accelerators = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
        yield Cluster(
            nodes=list_cluster_nodes(cluster_file) if address else list_local_nodes(),
            node_id=ray.get_runtime_context().get_node_id(),
            accelerators=tuple(sorted(accelerators)),
            dashboard=context.dashboard_url or "",
            log_dir=None if address else Path(context.address_info["session_dir"]) / "logs",
            store_bytes=resources.get("object_store_memory", math.inf),
        )
    finally:
        with span("end Ray"), silence_stderr():
            ray.shutdown()


def _check_dashboard() -> None:
    try:
        import ray.dashboard.optional_deps  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ConfigError(
            f'ray.dashboard needs more of Ray than is installed ({error}): pip install "ray[default]"'
        ) from error


def _job_config(config: Config, address: str | None) -> JobConfig | None:
    """Return what the dashboard's list of jobs says of this driver; None through Ray Client, which lacks it."""
    if address and "://" in address:
        return None
    return JobConfig(metadata=_metadata(config))


def _metadata(config: Config) -> dict[str, str]:
    """Return what the dashboard and `ray list jobs --detail` tell of the run; a submitted job's own metadata wins."""
    return {
        "job_name": config.name,
        "run_directory": str(config.run_dir),
        "model": config.model.name,
        "format": f"{config.quant.format}, groups of {config.quant.group_size}",
        "steps": str(config.learner.steps),
        "storage": config.storage or "",
    }


@contextmanager
def _keep_stop_signal() -> Generator[None]:
    """Keep what SIGTERM does: Ray puts a handler of its own, which ends the process without a word.

    One that comes while Ray starts is met by that handler; it counts as Ctrl-C all the same.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
