"""How soon a whole run starts, and how soon it is over after its last step: with empty caches, and once more.

The command is run as a user would, in processes of its own, so that the interpreter's start and all imports count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayqd.config import Config
from rayqd.config.resolved import to_toml, with_absolute_paths
from rayqd.errors import RunError
from rayqd.runs.environment import Environment
from rayqd.runs.paths import RESULT
from rayqd.runs.result_file import read_result
from rayqd.runs.startup import Startup

CACHES = ("cold", "warm")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupTiming:
    """One run of the command."""

    caches: str  # cold or warm
    seconds: float  # from the command to its prompt
    startup: Startup
    environment: Environment


def bench_startup(config: Config) -> Iterator[StartupTiming]:
    """Run `config` twice from its beginning, the first time with empty caches; yield each run's timing.

    Caches and runs are in a directory that is removed at the end. The model itself is read from where it is, and the
    system keeps its files in memory. Raises RunError with the last line of a run that fails.
    """
    with tempfile.TemporaryDirectory(prefix="rayqd-startup-") as directory:
        for caches in CACHES:
            yield _run(config, Path(directory), caches)


def _run(config: Config, directory: Path, caches: str) -> StartupTiming:
    own = with_absolute_paths(config).model_copy(update={"name": caches, "runs_dir": directory, "storage": None})
    file = directory / f"{caches}.toml"
    file.write_text(to_toml(own))
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "rayqd", "distill", f"@{file}"],
        env=os.environ | {"RAYQD_CACHE": str(directory / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    result = read_result(own.run_dir / RESULT)
    if run.returncode or result is None or result.startup is None or result.environment is None:
        last = run.stdout.strip().rpartition("\n")[2]
        raise RunError(f"the {caches} run ended with exit code {run.returncode}: {last}")
    return StartupTiming(caches=caches, seconds=seconds, startup=result.startup, environment=result.environment)
