"""What a run asks of Ray's processes fits what the job it runs in has settled, by Ray's own rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.runtime_env.runtime_env import _merge_runtime_env
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR

import rayqd
from rayqd.actors.node import localize_run_dir, remove_local_run_dir
from rayqd.actors.runtime_env import make_runtime_env
from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.runs.directory import RunDirectory

CHECKOUT = Path(rayqd.__file__).parents[1]


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes this process look like the entrypoint of a job with the given runtime_env."""

    def enter(**runtime_env: Any) -> dict[str, Any]:
        text = json.dumps({"runtime_env": runtime_env, "metadata": {}})
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", text)
        return runtime_env

    return enter


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"env_vars": {"TOKENIZERS_PARALLELISM": "true", "MINE": "1"}},
        {"py_modules": ["gcs://other.zip"]},
        {"working_dir": "gcs://a.zip", "excludes": ["data"]},
    ],
)
def test_a_job_and_its_run_never_clash(job: dict[str, Any], in_a_job: Any) -> None:
    settled = in_a_job(**job)
    asked = make_runtime_env(Config(), ships_package=True)
    merged = _merge_runtime_env(settled, asked)
    assert merged is not None
    assert merged["env_vars"]["VLLM_NO_USAGE_STATS"] == "1"
    for field, value in job.items():
        if field == "env_vars":
            assert merged[field] | value == merged[field]  # what the user asked for stays
        else:
            assert merged[field] == value


def test_nodes_get_this_very_package_unless_the_working_directory_has_it(
    in_a_job: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = str(CHECKOUT / "rayqd")
    assert make_runtime_env(Config(), ships_package=True).get("py_modules") == [package]
    assert "py_modules" not in make_runtime_env(Config(), ships_package=False)
    in_a_job(working_dir="gcs://checkout.zip")
    monkeypatch.chdir(CHECKOUT)
    assert "py_modules" not in make_runtime_env(Config(), ships_package=True)
    monkeypatch.chdir(tmp_path)  # a working directory with settings alone
    assert make_runtime_env(Config(), ships_package=True).get("py_modules") == [package]


@pytest.mark.parametrize(
    ("ships_package", "said", "expected"), [(False, None, "0"), (True, None, "1"), (False, "1", "1")]
)
def test_nodes_that_may_be_taken_away_are_watched_on_a_cluster_alone(
    ships_package: bool, said: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    assert name == ENABLE_PREEMPTION_WATCHER_ENV_VAR
    monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv(name, said)
    assert make_runtime_env(Config(), ships_package=ships_package).get("env_vars", {})[name] == expected


def test_a_run_does_not_lie_in_the_copy_that_ray_made_of_a_jobs_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1234"
    copy.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = Config.model_validate({"runs_dir": Path("mine"), "storage": "./store"})
    monkeypatch.chdir(copy)
    inside = with_absolute_paths(config)
    assert (inside.runs_dir, inside.storage) == (tmp_path / "home/mine", str(tmp_path / "home/store"))
    monkeypatch.chdir(tmp_path)
    outside = with_absolute_paths(config)
    assert (outside.runs_dir, outside.storage) == (tmp_path / "mine", str(tmp_path / "store"))
    whole = with_absolute_paths(config.model_copy(update={"runs_dir": Path("/a"), "storage": "s3://b/c"}))
    assert (whole.runs_dir, whole.storage) == (Path("/a"), "s3://b/c")


def test_a_node_without_the_drivers_disk_keeps_the_run_in_its_cache_and_forgets_it_at_the_end(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    config = tiny_config(storage=f"file://{tmp_path}/store")
    RunDirectory(config).close()
    assert localize_run_dir(config) == config  # this machine has the driver's directory
    run_id = (config.run_dir / "run-id").read_text()
    (config.run_dir / "run-id").write_text("of another run that once lay here")
    elsewhere = localize_run_dir(config)
    assert elsewhere.run_dir == tmp_path / "cache" / "runs" / run_id / "tiny"
    elsewhere.run_dir.mkdir(parents=True)
    remove_local_run_dir(config, config)
    assert config.run_dir.is_dir()
    remove_local_run_dir(config, elsewhere)
    assert not elsewhere.runs_dir.exists()


def test_without_storage_a_node_uses_the_drivers_directory(tiny_config: Any) -> None:
    config = tiny_config()
    assert localize_run_dir(config) is config


def test_looking_where_a_run_lies_loads_no_torch() -> None:
    program = "import sys, rayqd.runs.storage.fetch; assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=CHECKOUT)
