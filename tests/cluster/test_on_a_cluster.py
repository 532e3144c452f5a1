"""Whole runs on clusters of several nodes: real roles and a real learner; only the engine is fake and the model tiny.

Nodes are processes of this machine, with labels and CPUs in Ray's books.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from fake_cloud import ROOT, autoscaling_cluster
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from rayqd.cluster.nodes import MARKET
from rayqd.config import Config
from rayqd.config.resolved import to_toml
from rayqd.data import Plan
from rayqd.driver.preflight import check, load_data

pytestmark = [pytest.mark.slow, pytest.mark.ray]

VOCAB_SIZE = 128
AS_PLACED = {"learner": "on-demand", "teacher-0": "spot", "rollout-0": "spot"}
DRIVER = f"""
import functools, sys
import rayqd.cli
from rayqd.commands import distill
from rayqd.rollout.fake import FakeEngine
distill.distill = functools.partial(distill.distill, make_engine=functools.partial(FakeEngine, {VOCAB_SIZE}))
sys.exit(rayqd.cli.main(["distill", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def exports() -> dict[str, Path]:
    """Where each test leaves its export: both train the same, so both must come to the same."""
    return {}


@pytest.fixture
def run_config(tiny_config: Any) -> Any:
    def make(address: str | None) -> Config:
        return tiny_config(
            learner={"steps": 40},
            rollout={"max_staleness": 2, "min_new_tokens": 40, "max_new_tokens": 60},
            checkpoint={"every": 20},
            ray={"address": address, "placement_timeout_seconds": 100},
        )

    return make


class Driver:
    """`rayqd distill` in a process of its own, or as a job of the cluster whose dashboard is given."""

    def __init__(self, config: Config, directory: Path, dashboard: str = "") -> None:
        self._config = config
        (directory / "run.toml").write_text(to_toml(config))
        (directory / "main.py").write_text(DRIVER)
        command = ["python", str(directory / "main.py"), f"@{directory / 'run.toml'}"]
        if dashboard:
            # Without a working directory: Ray's fake nodes share the place where it would be unpacked, and empty it.
            command = ["ray", "job", "submit", "--address", dashboard, "--", *command]
        self._process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command[0])), *command[1:]],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def steps(self) -> list[dict[str, Any]]:
        file = self._config.run_dir / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [row for row in rows if row["event"] == "step"]

    def output(self) -> str:
        """What it printed; waits for its end, which must be a good one."""
        output, _ = self._process.communicate(timeout=200)
        assert self._process.returncode == 0, output
        return output

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(config: Config, dashboard: str = "") -> Driver:
        drivers.append(Driver(config, tmp_path_factory.mktemp("driver"), dashboard))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.stop()


def planned_loss_tokens(config: Config) -> list[int]:
    """What each step must train on: the plan's completions, as the data and the fake engine have them."""
    training, _ = load_data(check(config), config)
    plan = Plan(
        num_examples=training.sizes,
        batch_size=config.learner.batch_size,
        lmbda=config.distill.lmbda,
        seed=config.seed,
    )
    low, high = config.rollout.min_new_tokens, config.rollout.max_new_tokens

    def length(sequence: Any) -> int:
        if sequence.on_policy:
            return int(np.random.default_rng(sequence.seed).integers(low, high + 1))
        return len(training.examples[sequence.example].completion_ids)

    return [sum(length(sequence) for sequence in plan.step(step)) for step in range(config.learner.steps)]


def markets(output: str) -> dict[str, str]:
    """By role, the market of the node that it became ready on, as it told itself."""
    lines = [line for line in output.splitlines() if " ready after " in line]
    return {line.split()[0]: line.rpartition("(")[2].rstrip(")") for line in lines}


def check_trained_as_planned(driver: Driver, config: Config, exports: dict[str, Path], name: str) -> None:
    rows = driver.steps()
    assert [row["step"] for row in rows] == list(range(1, config.learner.steps + 1))
    assert [row["num_loss_tokens"] for row in rows] == planned_loss_tokens(config)
    assert all(0 <= row["staleness"] <= 2 for row in rows)
    exports[name] = config.run_dir / "export" / "model.safetensors"
    first, *others = [load_file(path) for path in exports.values()]
    for other in others:
        assert all(torch.equal(first[key], other[key]) for key in first)


def alive() -> dict[str, int]:
    """Nodes by market; the head is in none."""
    markets = [node["Labels"].get(MARKET, "head") for node in ray.nodes() if node["Alive"]]
    return {market: markets.count(market) for market in markets}


def test_nodes_come_for_a_job_and_go_after_it(run_config: Any, start_driver: Any, exports: dict[str, Path]) -> None:
    node_types = {
        "steady": {"resources": {"CPU": 1}, "labels": {MARKET: "on-demand"}, "min_workers": 0, "max_workers": 1},
        "spot": {"resources": {"CPU": 1}, "labels": {MARKET: "spot"}, "min_workers": 0, "max_workers": 3},
    }
    with autoscaling_cluster(node_types, idle_seconds=5) as (address, dashboard):
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        try:
            assert alive() == {"head": 1}
            config = run_config(None)  # a job finds its own cluster
            driver = start_driver(config, dashboard)
            most: dict[str, int] = {}
            while driver.runs:
                most |= {group: max(count, most.get(group, 0)) for group, count in alive().items()}
                time.sleep(0.5)
            output = driver.output()
            deadline = time.monotonic() + 60
            while alive() != {"head": 1}:
                assert time.monotonic() < deadline, alive()
                time.sleep(0.5)
        finally:
            ray.shutdown()
    # One CPU each: the learner on the steady node, the teacher and the rollout worker on a spot node each.
    assert re.search(r"Job '\w+' succeeded", output)
    assert "waiting for the cluster to start 1 steady, 2 spot" in output
    assert most == {"head": 1, "on-demand": 1, "spot": 2}
    assert markets(output) == AS_PLACED
    check_trained_as_planned(driver, config, exports, "autoscaled")


@pytest.fixture
def four_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, a steady node and two spot ones."""
    with tempfile.TemporaryDirectory(prefix="rayqd-") as directory:
        monkeypatch.setenv("RAY_TMPDIR", directory)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        system = {
            "health_check_period_ms": 500,  # a dead node is noticed after a second instead of 15
            "health_check_failure_threshold": 2,
            "object_manager_pull_timeout_ms": 1000,  # and that its objects are lost, after another
            "max_direct_call_object_size": 8000,  # so that scores lie on their node, as those of a larger model do
        }
        cluster = Cluster()
        cluster.add_node(num_cpus=0, include_dashboard=False, _system_config=system)
        cluster.add_node(num_cpus=1, labels={MARKET: "on-demand"})
        for _ in range(2):
            cluster.add_node(num_cpus=4, labels={MARKET: "spot"})
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_a_run_that_loses_a_spot_node_trains_every_planned_sequence_once(
    run_config: Any, start_driver: Any, four_nodes: Cluster, exports: dict[str, Path]
) -> None:
    config = run_config(four_nodes.address)
    driver = start_driver(config)
    ray.init(address=four_nodes.address, namespace="rayqd", log_to_driver=False, logging_level="ERROR")
    while len(driver.steps()) < 10:
        assert driver.runs, driver.output()
        time.sleep(0.02)
    doomed = node_of("teacher-0")
    four_nodes.remove_node(next(n for n in four_nodes.worker_nodes if n.node_id == doomed), allow_graceful=False)
    assert len(driver.steps()) < config.learner.steps
    output = driver.output()
    assert markets(output) == AS_PLACED
    assert sum(row["num_retries"] for row in driver.steps()) > 0
    check_trained_as_planned(driver, config, exports, "lost a node")


def node_of(role: str) -> str:
    """Its id, by the actor's own word."""
    actor: Any = ray.get_actor(f"rayqd/tiny/{role}")
    told: Any = actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    return str(ray.get(told))
