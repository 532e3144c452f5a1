"""Runs as Ray jobs, through `ray job submit` and `status`: what the user types, and what Ray answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rayqd
from rayqd.config.resolved import to_toml

pytest.importorskip("aiohttp_cors", reason="jobs need Ray's dashboard: pip install 'ray[default]'")
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]

RAY = str(Path(sys.executable).with_name("ray"))


class Jobs:
    """A cluster, and a directory with the code and a file of settings to submit to it."""

    def __init__(self, working_dir: Path, environment: dict[str, str]) -> None:
        self.working_dir = working_dir
        self._environment = environment
        from ray.job_submission import JobSubmissionClient

        self._client = JobSubmissionClient(environment["RAY_API_SERVER_ADDRESS"])

    def submit(self, name: str, *flags: str) -> subprocess.Popen[str]:
        runtime_env = {"env_vars": {"TOKENIZERS_PARALLELISM": "true", "RAY_JOB_STOP_WAIT_TIME_S": "60"}}
        options = ["--submission-id", name, "--working-dir", ".", "--runtime-env-json", json.dumps(runtime_env)]
        return self._ray("submit", *options, "--", "python", "-m", "rayqd", "distill", "@run.toml", *flags)

    def outcome(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    def status(self, name: str) -> str:
        _, output = self.outcome(self._ray("status", name))
        (status,) = set(re.findall(rf"Job '{name}' (?:was )?(\w+)", output)) or {output}
        return status

    def stop(self, name: str) -> None:
        """Ask what `ray job stop` asks, which takes longer to import Ray than a tiny model to train."""
        assert self._client.stop_job(name)

    def _ray(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [RAY, "job", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.working_dir,
            env=self._environment,
        )


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    from ray.cluster_utils import Cluster

    working_dir = tmp_path_factory.mktemp("checkout")
    shutil.copytree(Path(rayqd.__file__).parent, working_dir / "rayqd", ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path_factory.mktemp("home")
    ray_dir = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a socket's path has room for 107 characters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("HOME", str(home))
        patch.delenv("PYTHONPATH", raising=False)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 4,
                "include_dashboard": True,
                "dashboard_port": free_port(),
                "dashboard_agent_listen_port": free_port(),
                "temp_dir": ray_dir,
            },
        )
        # As `ray start` does; without it a job goes to whatever other cluster runs on this machine.
        Path(ray_dir, "ray_current_cluster").write_text(cluster.address)
        patch.setenv("RAY_API_SERVER_ADDRESS", f"http://{cluster.webui_url}")
        yield Jobs(working_dir, dict(os.environ))
    cluster.shutdown()
    shutil.rmtree(ray_dir, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_job_that_is_stopped_goes_on_from_its_storage_and_one_that_is_refused_says_why_at_the_end(
    jobs: Jobs, tiny_config: Any, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    config = tiny_config(storage=f"file://{store}", learner={"steps": 60}, checkpoint={"every": 1000})
    (jobs.working_dir / "run.toml").write_text(to_toml(config))

    first = jobs.submit("first")
    wait_for_step(config.run_dir, 5, first)
    jobs.stop("first")
    _, output = jobs.outcome(first)
    assert jobs.status("first") == "stopped"
    (kept,) = re.findall(r"^stopped after step (\d+), of which a checkpoint is kept$", output, re.MULTILINE)
    assert "rayqd: stopped; the same command goes on from the last checkpoint" in output
    assert [path.name for path in (store / "tiny" / "checkpoints").iterdir()] == [f"step-{int(kept):06d}"]

    shutil.rmtree(config.run_dir)  # the node is gone, and its disk
    code, output = jobs.outcome(jobs.submit("changed", "--learner.lr", "2e-3"))
    assert (code, jobs.status("changed")) == (1, "failed")
    message = output.partition("Status message:")[2].strip()
    assert message.startswith("Job entrypoint command failed with exit code 1")
    why = f"rayqd: error: file://{store}/tiny belongs to another configuration (learner.lr: 0.001 -> 0.002)"
    assert message.splitlines()[-1].startswith(why)  # the last line, which is all that some tools show

    code, output = jobs.outcome(jobs.submit("second"))
    assert (code, jobs.status("second")) == (0, "succeeded"), output
    assert f"resuming after step {kept}\n" in output
    for place in (config.run_dir, store / "tiny"):
        rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 61))
    here, there = (load_file(place / "export" / "model.safetensors") for place in (config.run_dir, store / "tiny"))
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert json.loads((store / "tiny" / "result.json").read_text())["num_steps"] == 60
    assert (store / "tiny" / "checkpoints" / "step-000060" / "manifest.json").is_file()


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
