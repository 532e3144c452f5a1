"""Two workers with half the weights each, against one that has them all: the same numbers, to the bit where exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.config import Config
from rayqd.learner.checkpoint import load_checkpoint
from rayqd.model.load import load_model
from rayqd.model.wire import from_wire, to_wire
from rayqd.teacher.forward import Teacher
from rayqd.types import HiddenPayload, ScoredRollout
from tests.learner.sharded_workers import alone, alone_from_the_checkpoint_of_two, one_of_two, spawn

pytestmark = pytest.mark.slow

# A norm is added up in another order; where it does not scale the gradient, every bit must be the same.
EXACT: dict[str, Any] = {"max_grad_norm": 1e9, "microbatch_tokens": 1, "steps": 3, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def configs(tiny_model: Path, tiny_data: Path) -> dict[str, Config]:
    def make_config(dtype: str = "float32", **learner: Any) -> Config:
        sections: dict[str, Any] = {
            "model": {"name": str(tiny_model), "dtype": dtype},
            "quant": {"group_size": 64, "init": "rtn"},
            "adapter": {"kind": "none"},
            "data": {"source": str(tiny_data)},
            "distill": {"beta": 0.5, "lmbda": 1.0},
            "learner": {**EXACT, "lr": 1e-3, **learner},
            "checkpoint": {"every": 100},
        }
        return Config.model_validate(sections)

    return {
        "plain": make_config(),
        "recomputed": make_config(gradient_checkpointing=True),
        "clipped": make_config(max_grad_norm=1e-3),
        "bfloat16": make_config("bfloat16"),
    }


@pytest.fixture(scope="module")
def batch(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    rollouts = make_rollouts((5, 9), (17, 3), (2, 1), (30, 14), (8, 8))
    payloads = Teacher(load_model(tiny_model, "float32"), 8192).hidden(rollouts)
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two-workers")


@pytest.fixture(scope="module")
def given(tiny_model: Path, configs: dict[str, Config], batch: list[ScoredRollout]) -> dict[str, Any]:
    batches = {name: of_dtype(batch, config) for name, config in configs.items()}
    return {"model": tiny_model, "configs": configs, "batches": batches}


@pytest.fixture(scope="module")
def one(given: dict[str, Any], directory: Path) -> dict[str, Any]:
    return spawn(alone, 1, directory, **given)[0]


@pytest.fixture(scope="module")
def two(given: dict[str, Any], directory: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    del one  # whose checkpoint they go on from
    return spawn(one_of_two, 2, directory, **given)


def of_dtype(batch: list[ScoredRollout], config: Config) -> list[ScoredRollout]:
    """The teacher's states as a teacher of that dtype sends them."""
    dtype = getattr(torch, config.model.dtype)
    return [replace(s, payload=HiddenPayload(hidden=to_wire(from_wire(s.payload.hidden).to(dtype)))) for s in batch]


@pytest.mark.parametrize("name", ["plain", "recomputed", "bfloat16"])
def test_shares_of_other_lengths_and_none_at_all_train_to_the_same_bits(
    one: dict[str, Any], two: list[dict[str, Any]], name: str
) -> None:
    expected, actual = one[name], two[0][name]
    assert_same(actual["state"], expected["state"])
    np.testing.assert_allclose(actual["results"], expected["results"], rtol=1e-5)
    assert actual["results"] == two[1][name]["results"]
    assert actual["fidelity"] == two[1][name]["fidelity"] == expected["fidelity"]


def test_every_worker_sees_the_codes_that_one_alone_would_publish(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    for rank in (0, 1):
        codes = two[rank]["plain"]["codes"]
        assert codes.keys() == one["plain"]["codes"].keys()
        assert all(np.array_equal(codes[name].bits, wire.bits) for name, wire in one["plain"]["codes"].items())


def test_the_gradient_is_clipped_by_the_norm_over_all_workers(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected, actual = one["clipped"], two[0]["clipped"]
    assert min(norm for _, norm in expected["results"]) > 1e-3  # the limit, so all three were
    np.testing.assert_allclose(actual["results"][0], expected["results"][0], rtol=1e-5)
    moments = expected["state"]["optimizer"]
    for name in moments:
        torch.testing.assert_close(actual["state"]["optimizer"][name], moments[name], rtol=1e-2, atol=1e-8)


def test_each_worker_holds_half_and_only_the_first_is_given_the_whole(one: Any, two: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        assert two[rank]["plain"]["own_bytes"] == one["plain"]["own_bytes"] / 2
    assert two[1]["plain"]["state"] == {"student": {}, "optimizer": {}}


def test_two_workers_go_on_from_the_checkpoint_of_one(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    assert_same(two[0]["resumed"], one["plain"]["state"])


def test_one_worker_goes_on_from_the_checkpoint_that_two_left_when_they_were_stopped(
    given: dict[str, Any], one: Any, two: Any, directory: Path
) -> None:
    assert [two[rank]["stopped"]["kept"] for rank in (0, 1)] == [2, 2]
    assert [two[rank]["stopped"]["steps"] for rank in (0, 1)] == [[2], []]
    assert two[0]["stopped"]["published"] == [0, 1, 2]
    (resumed,) = spawn(alone_from_the_checkpoint_of_two, 1, directory, **given)
    assert resumed["num_digests"] == resumed["num_layers"]
    assert_same(resumed["state"], one["plain"]["state"])


def test_the_first_workers_evaluations_decide_and_every_shard_is_of_the_best_weights(
    two: list[dict[str, Any]], directory: Path
) -> None:
    first, second = (two[rank]["best"] for rank in (0, 1))
    assert (first["num_steps"], first["step"], first["kept"]) == (3, 2, [2])
    assert (second["num_steps"], second["step"], second["kept"]) == (3, 2, [])
    kept = load_checkpoint(directory / "best" / "0" / "best-000002")["student"]
    last = load_checkpoint(directory / "best" / "0" / "step-000003")["student"]
    assert kept.keys() == first["state"].keys()
    assert all(torch.equal(kept[name], first["state"][name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_threads_that_the_workers_begin_in_two_orders_hear_each_their_own(two: list[dict[str, Any]]) -> None:
    """The one that trains, of the best step, and the one that stops, of the steps done."""
    assert [each["two orders"] for each in two] == [{"sent": "trained", "gathered": [0, 1]}] * 2


def test_workers_that_hear_of_a_stop_at_different_times_stop_at_the_same_step(two: list[dict[str, Any]]) -> None:
    first, second = (two[rank]["stopped apart"] for rank in (0, 1))
    assert first["kept"] == second["kept"]
    assert first["steps"] == [first["kept"]]


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for group in ("student", "optimizer"):
        assert actual[group].keys() == expected[group].keys()
        assert len(actual[group]) > 0
        for name, tensor in expected[group].items():
            assert torch.equal(actual[group][name], tensor), name
