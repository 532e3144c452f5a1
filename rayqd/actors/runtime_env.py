"""What a run asks of every process that Ray starts for it: environment variables, and this very package."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import TypedDict

from rayqd.config import Config
from rayqd.config.job import runtime_env_of_the_job
from rayqd.console.quiet import quiet_env_vars

_PACKAGE = Path(__file__).parents[1]


class RuntimeEnv(TypedDict, total=False):
    """The fields of Ray's runtime_env that a run sets."""

    env_vars: dict[str, str]
    py_modules: list[str]
    excludes: list[str]


def make_runtime_env(config: Config, *, ships_package: bool) -> RuntimeEnv:
    """Return the runtime_env for `ray.init`; what the job that this process runs in has settled is left out.

    Ray refuses a field or a variable that job and driver both give, even the same. `ships_package`: the nodes may have
    another rayqd or none, so they get the one that runs here.
    """
    settled = runtime_env_of_the_job()
    taken = settled.get("env_vars", {})
    variables = quiet_env_vars() | _train_environment(config, is_cluster=ships_package)
    wanted: RuntimeEnv = {"env_vars": {name: text for name, text in variables.items() if name not in taken}}
    if ships_package and not (_carries_package(settled.keys()) or {"py_modules", "excludes"} & settled.keys()):
        wanted["py_modules"], wanted["excludes"] = [str(_PACKAGE)], ["__pycache__"]
    return wanted


def _carries_package(settled: Set[str]) -> bool:
    """Whether the job's working directory, which every process gets, is where rayqd was imported from."""
    return "working_dir" in settled and _PACKAGE.parent == Path.cwd()


_GRACE_SECONDS = 5.0


def _train_environment(config: Config, *, is_cluster: bool) -> dict[str, str]:
    return {
        # An actor that looks for nodes about to be taken away; the only node of this machine's own Ray never is.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": os.environ.get(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(is_cluster))
        ),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(config.ray.placement_timeout_seconds),
        # Of a worker whose process stands still as a whole; one that only makes no progress ends itself before.
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(config.ray.stall_seconds + _GRACE_SECONDS),
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1" if config.ray.dashboard else "0",
        # How often Ray Train looks whether its workers have ended; the run ends when it has seen that.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25"),
    }
