"""An engine of two processes in an actor: where one dies the actor starts anew, and where the actor dies both do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from rayqd.actors.pool import Pool
from rayqd.actors.ray_types import fetch, put
from rayqd.actors.workers import RolloutActor
from rayqd.config import Config
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.pipeline import Weights
from rayqd.rollout.engine_makers import vllm_engine_maker
from rayqd.rollout.sampling import SamplingRules
from rayqd.rollout.worker import RolloutWorker
from rayqd.types import Example, PlannedSequence

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


async def write(workers: Pool[RolloutActor], weights: Weights, rules: SamplingRules) -> list[int]:
    sequence = PlannedSequence(step=0, index=0, example=0, on_policy=True, seed=7)
    prompt = Example(row=0, prompt_ids=np.arange(3, 19, dtype=np.int32), completion_ids=np.arange(2, dtype=np.int32))
    _, (rollout,), _ = await workers.call(RolloutActor.write, 1, [sequence], [prompt], weights, rules)
    return ray.get(rollout).completion_ids.tolist()


def find_ranks(actor: Any) -> list[psutil.Process]:
    _, pid = ray.get(actor.locate_process.remote())
    return [child for child in psutil.Process(pid).children(recursive=True) if "VLLM::" in " ".join(child.cmdline())]


async def test_any_of_its_processes_may_die(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path))
    sections: dict[str, Any] = {
        "model": {"name": str(tiny_model)},
        "quant": {"group_size": 64, "init": "rtn"},
        "data": {"max_length": 64},
        "rollout": {
            "tensor_parallel": 2,
            "max_new_tokens": 8,
            "min_new_tokens": 8,
            "temperature": 0,
            "max_concurrent": 2,
        },
    }
    config = Config.model_validate(sections)
    heard: list[str] = []

    async def notice(text: str, died: str = "") -> None:
        heard.append(text)

    worker = RolloutWorker(0, vllm_engine_maker(config, 1.0), fetch)
    actor: Any = ray.remote(RolloutActor).options(num_cpus=0, max_restarts=-1, name="rayqd/divided/rollout-0")
    handle = actor.remote(worker)
    workers = Pool("rollout", [handle], notice=notice)
    rules = SamplingRules(settings=config.rollout)
    published = collect_rollout_weights(Student.load(tiny_model, config), config)
    weights = Weights(version=0, tensors=put(published))

    written = await write(workers, weights, rules)
    ranks = find_ranks(handle)
    assert len(ranks) == 2
    ranks[1].kill()
    assert await write(workers, weights, rules) == written
    assert any("rollout-0" in line for line in heard)

    ranks = find_ranks(handle)
    assert len(ranks) == 2
    ray.kill(handle)
    ended = await asyncio.to_thread(partial(psutil.wait_procs, ranks, timeout=30))
    assert not ended[1], "a process of the engine has outlived its actor"
