"""A cluster with an autoscaler whose nodes are processes of this machine, by Ray's fake provider.

Ray's own AutoscalingCluster reads a file that its wheel lacks, and begins by ending every Ray of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

ROOT = Path(__file__).parents[2]


def cluster_file(node_types: Mapping[str, Any], gcs_address: str, *, idle_seconds: float) -> dict[str, Any]:
    """As cluster.yaml would say it; `node_types` beside a head without CPUs."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    workers = {name: {"node_config": {}, **node_type} for name, node_type in node_types.items()}
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": sum(each["max_workers"] for each in node_types.values()),
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": gcs_address,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {FAKE_HEAD_NODE_TYPE: head, **workers},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        **{f"{name}_commands": [] for name in commands},
        "cluster_synced_files": [],
        "file_mounts": {},
        "auth": {},
    }


@contextmanager
def autoscaling_cluster(node_types: Mapping[str, Any], *, idle_seconds: float) -> Iterator[tuple[str, str]]:
    """The addresses of its head and of its dashboard; all of its processes are gone afterwards, and no others."""
    directory = Path(tempfile.mkdtemp(prefix="rayqd-"))  # short: a socket's path has 107 characters at most
    port, dashboard_port, agent_port = _free_port(), _free_port(), _free_port()
    address = f"{get_node_ip_address()}:{port}"
    file = directory / "cluster.yaml"
    file.write_text(json.dumps(cluster_file(node_types, address, idle_seconds=idle_seconds)))
    ports = ["node-manager", "object-manager", "metrics-export"]
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"),
        *(f"--port={port}", f"--temp-dir={directory}", f"--autoscaling-config={file}", "--include-dashboard=true"),
        *(f"--{each}-port=0" for each in ports),
        f"--ray-client-server-port={_free_port()}",
        *(f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={agent_port}"),
        "--object-store-memory=150000000",
    ]
    with (directory / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=os.environ | _environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(get_node_ip_address(), port, head, directory / "head.log")
            _wait_for("127.0.0.1", dashboard_port, head, directory / "head.log")
            yield address, f"http://127.0.0.1:{dashboard_port}"
        finally:
            _end(head, directory)


def _environment() -> dict[str, str]:
    return {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # where a job's `python` is
        "PYTHONPATH": str(ROOT),  # what the nodes' workers import rayqd from
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _wait_for(host: str, port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    while head.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _end(head: subprocess.Popen[bytes], directory: Path) -> None:
    """What belongs to this cluster has its directory on the command line, or is a child of what has."""
    own = {p for p in psutil.process_iter(["cmdline"]) if any(str(directory) in w for w in p.info["cmdline"] or [])}
    own |= {child for process in own for child in process.children(recursive=True)}
    for process in own:
        process.kill()
    psutil.wait_procs(own, timeout=10)
    head.wait(timeout=10)
    shutil.rmtree(directory, ignore_errors=True)
