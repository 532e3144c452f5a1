"""Ray itself says whether something waits for room, or has it and is only slow to start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rayqd.actors.connection import connect
from rayqd.actors.failures import unwrap_error
from rayqd.actors.topology import anything_waits_for_room
from rayqd.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SLOW_SECONDS = 30


def comes_true_within(seconds: float) -> bool:
    """Whether something is told to wait for room; nodes report it once a second."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if anything_waits_for_room():
            return True
        time.sleep(0.25)
    return False


def test_slow_is_told_from_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "sitecustomize.py").write_text(f"import time; time.sleep({SLOW_SECONDS})")

    class Worker:
        def name(self) -> str:
            return "worker"

    with connect(Config()) as cluster:
        slow: Any = ray.remote(num_cpus=0.5, runtime_env={"env_vars": {"PYTHONPATH": str(tmp_path)}})(Worker).remote()
        named = slow.name.remote()
        assert not comes_true_within(5)
        assert ray.wait([named], timeout=0)[0] == [], "its process is to be slower than the test"
        too_large = placement_group([{"CPU": cluster.size.cpus + 1}])
        assert comes_true_within(15)
        remove_placement_group(too_large)


def test_a_worker_ended_for_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.0001")  # every machine uses more
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")

    def stay() -> None:
        time.sleep(60)

    with connect(Config()):
        task: Any = ray.remote(max_retries=0)(stay)
        with pytest.raises(ray.exceptions.RayError) as caught:
            ray.get(task.remote(), timeout=60)
    text = str(unwrap_error(caught.value, "rollout-0"))
    assert text.startswith("rollout-0 was ended because its machine ran out of memory")
    assert "end other programs" in text
    assert "\n" not in text
