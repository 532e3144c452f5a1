"""Rollout workers that hold a checkpoint, on real Ray actors; their engine is fake and kills them now and then."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorUnavailableError

from rayqd.actors.batch_generation import BatchGenerator, _Blocks
from rayqd.actors.connection import Cluster
from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.cluster.placement import place_rollout_workers
from rayqd.config import Config
from rayqd.errors import DataError, PlacementError
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.fake import FakeEngine

CONFIG = Config.model_validate({"rollout": {"num_workers": 2, "max_concurrent": 4}})


def nodes(cpus: float, gpus: int, num_nodes: int = 1) -> Nodes:
    return Nodes(groups=(NodeGroup(name="a", cpus=cpus, gpus=gpus, labels={}, running=num_nodes, startable=0),))


MACHINE = Cluster(nodes=nodes(2, 0), node_id="here", accelerators=(), dashboard="", log_dir=None)


def request(seed: int) -> SamplingRequest:
    prompt = np.arange(5, dtype=np.int32)
    return SamplingRequest(prompt_ids=prompt, seed=seed, temperature=1.0, min_new_tokens=2, max_new_tokens=9)


def mortal_engine(deaths: Path) -> Any:
    """Defined in a function, so that it travels by value: Ray's workers cannot import a test."""

    class Mortal(FakeEngine):
        def stream(self, requests: Any) -> Any:
            for place, each in enumerate(super().stream(requests)):
                if place == 3 and not deaths.exists():
                    deaths.touch()
                    os._exit(1)
                yield each

    return lambda: Mortal(99)


def process_of(actor: Any) -> int:
    """Its process id, as soon as it has one again."""
    for _ in range(600):
        try:
            return ray.get(actor.locate_process.remote())[1]
        except ActorUnavailableError:
            time.sleep(0.1)
    raise AssertionError("it did not come back")


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_every_request_is_answered_once_though_a_worker_dies_and_in_the_end_no_process_is_left(tmp_path: Path) -> None:
    requests = {10 * i: request(i) for i in range(60)}
    answered: list[tuple[int, Any]] = []
    with BatchGenerator(CONFIG, MACHINE, model="none", make_engine=mortal_engine(tmp_path / "deaths")) as generator:
        generator.wait_until_ready()
        generator.generate(
            iter(requests.items()), len(requests), lambda key, completion: answered.append((key, completion))
        )
        processes = [process_of(actor) for actor in generator._actors]
        assert all(psutil.pid_exists(pid) for pid in processes)
    assert not any(psutil.pid_exists(pid) for pid in processes)
    assert (tmp_path / "deaths").exists()
    assert sorted(key for key, _ in answered) == sorted(requests)
    engine = FakeEngine(99)
    for key, completion in answered:
        assert np.array_equal(completion, engine.generate([requests[key]])[0].token_ids)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_an_error_where_completions_are_kept_ends_the_writing_as_it_is() -> None:
    def refuse(key: int, completion: Any) -> None:
        raise DataError("rows.jsonl:3: no room")

    with (
        pytest.raises(DataError, match=r"^rows.jsonl:3: no room$"),
        BatchGenerator(CONFIG, MACHINE, model="none", make_engine=lambda: FakeEngine(99)) as generator,
    ):
        generator.generate(iter([(0, request(0))]), 1, refuse)


@given(st.integers(0, 3000), st.integers(1, 5), st.integers(1, 64), st.integers(0, 400))
def test_blocks_hold_every_request_once_however_wrong_the_number_was(
    num_requests: int, num_workers: int, batch_size: int, error: int
) -> None:
    each = request(0)
    blocks = _Blocks(((i, each) for i in range(num_requests)), num_requests + error, num_workers, batch_size)
    found: list[int] = []
    while block := blocks.next():
        found += block
        assert len(block) <= 32 * batch_size
    assert found == list(range(num_requests))


def test_blocks_are_long_first_and_a_batch_at_last() -> None:
    blocks = _Blocks(((i, request(0)) for i in range(100)), 100, 2, 10)
    assert [len(blocks.next()) for _ in range(8)] == [25, 19, 14, 11, 10, 10, 10, 1]
    alone = _Blocks(((i, request(0)) for i in range(100)), 100, 1, 10)
    assert len(alone.next()) == 100


@pytest.mark.parametrize(
    ("cpus", "gpus", "cores", "workers", "expected"),
    [
        (2, 0, 2, 1, (1.0, 0, 2)),
        (2, 0, 2, 2, (1.0, 0, 1)),  # both write at once, so each gets a core of its own
        (2, 0, 2, 3, (0.66, 0, 1)),
        (16, 0, 4, 4, (1.0, 0, 4)),  # four nodes
        (16, 2, 16, 2, (1, 1, 8)),
        (16, 1, 16, 2, (1, 1 / 2, 8)),
        (16, 4, 16, 1, (1, 1, 16)),
    ],
)
def test_writers_divide_the_cluster(
    cpus: int, gpus: int, cores: int, workers: int, expected: tuple[float, float, int]
) -> None:
    config = Config.model_validate({"rollout": {"num_workers": workers}})
    placement = place_rollout_workers(config, nodes(cores, gpus, num_nodes=cpus // cores))
    assert (placement.cpus_per_worker, placement.gpus_per_worker["rollout"], placement.threads_per_worker) == expected


def test_too_many_writers_are_refused() -> None:
    config = Config.model_validate({"rollout": {"num_workers": 50}})
    with pytest.raises(PlacementError, match="2 CPUs and 0 GPUs, too few for 50 rollout workers"):
        place_rollout_workers(config, nodes(2, 0))
