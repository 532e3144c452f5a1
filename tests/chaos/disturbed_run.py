"""A run in a process of its own, and what can be done to its processes and files from outside.

The engine is deterministic, the model tiny; Ray, its actors and the learner are the real ones.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from rayqd.config import Config
from rayqd.config.resolved import to_toml
from rayqd.runs.audit_file import read_audit

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 200.0  # for the next steps, after which a fault was not survived, unless a start took a third of it
_POLL_SECONDS = 0.05
_IN_FLIGHT_SECONDS = 0.2  # a step's line that comes so soon was on its way before
CANARIES = {  # secrets of a user's environment, which must be in no file that a run leaves
    "HF_TOKEN": "hf_canary7Qd1",
    "AWS_ACCESS_KEY_ID": "AKIACANARY7QD2",
    "AWS_SECRET_ACCESS_KEY": "canary7Qd3/secret",
    "GOOGLE_API_KEY": "canary7Qd4",
    "WANDB_API_KEY": "canary7Qd5",
}

_DRIVER = """
import functools, signal, sys, time
import rayqd.cli
from rayqd.commands import distill
from rayqd.rollout.fake import FakeEngine
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, their children too
if sys.argv[1] == "fake":
    class Slow(FakeEngine):  # so that deaths come in the middle of its work, too
        def generate(self, requests):
            time.sleep(0.05)
            return super().generate(requests)
    distill.distill = functools.partial(distill.distill, make_engine=functools.partial(Slow, 128))
sys.exit(rayqd.cli.main(["distill", *sys.argv[2:]]))
"""

# How Ray calls their processes: what they do at the moment may follow.
TITLES = {
    "rollout": "ray::RolloutActor",
    "teacher": "ray::TeacherActor",
    "learner": "ray::RayTrainWorker",
    "controller": "ray::Controller",
}


class DisturbedRun:
    """`rayqd distill`, started again by the same command where its driver was ended."""

    patience_seconds = WAIT_SECONDS
    _process: subprocess.Popen[bytes] | None = None

    def __init__(
        self,
        config: Config,
        directory: Path,
        engine: str = "fake",
        *,
        starts: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self._file = directory / f"{config.name}.toml"
        self._file.write_text(to_toml(config))
        self.screen = directory / f"{config.name}.txt"
        self._engine = engine
        self._environment = dict(environment or {})
        if starts:
            self.start()

    def start(self) -> None:
        """Give the command, once more."""
        own = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        with self.screen.open("a") as screen:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, self._engine, f"@{self._file}"],
                env=os.environ | CANARIES | {"OMP_NUM_THREADS": "1"} | own | self._environment,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_done(self) -> bool:
        """Whether it has its result."""
        return (self.config.run_dir / "result.json").is_file() and self.step >= self.config.learner.steps

    @property
    def output(self) -> str:
        return self.screen.read_text()

    @property
    def step(self) -> int:
        """The last step that metrics.jsonl knows of."""
        return max((row["step"] for row in self._rows()), default=0)

    @property
    def last_step_time(self) -> float:
        """When the last step was done, in seconds since the epoch."""
        return max((row["time"] for row in self._rows()), default=0.0)

    def _rows(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            lines = (self.config.run_dir / "metrics.jsonl").read_bytes().splitlines()[-4:]
            rows = [json.loads(line) for line in lines if line.endswith(b"}") and b'"step"' in line]
            return [row for row in rows if row.get("event") == "step"]
        return []

    def processes(self, role: str) -> list[psutil.Process]:
        """Those of a role; its driver has the raylet below it, and that all others."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            if self._process is None or not self.runs:
                return []
            driver = psutil.Process(self._process.pid)
            if role == "driver":
                return [driver]
            for process in driver.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(TITLES[role]):
                        found.append(process)
        return found

    def wait(self, reached: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
        """Wait until it is so; False where the run ended or nothing came of it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if reached():
                return True
            if not self.runs:
                return reached()
            time.sleep(_POLL_SECONDS)
        return False

    def wait_for_start(self, seconds: float) -> bool:
        """Wait for its first new step; what takes long here takes long after a fault as well."""
        began, step = time.monotonic(), self.step
        has_begun = self.wait(lambda: self.step > step, seconds)
        self.patience_seconds = max(self.patience_seconds, 3 * (time.monotonic() - began))
        return has_begun

    def wait_for_steps(self, step: int, began: float, seconds: float) -> float | None:
        """Wait until `step` is done; return the longest time without a new step since `began`, seconds of the epoch.

        None where the run ended before, or `seconds` did.
        """
        times = [began]

        def reached() -> bool:
            if (newest := self.last_step_time) > times[-1] + (_IN_FLIGHT_SECONDS if len(times) == 1 else 0):
                times.append(newest)
            return len(times) > 1 and self.step >= step

        if not self.wait(reached, seconds):
            return None
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def wait_for_end(self, seconds: float = WAIT_SECONDS) -> int | None:
        """Its exit code; None where it goes on."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def stop(self) -> None:
        """Do what Ctrl-C does, and wait for the end."""
        if self._process is not None and self.runs:
            self._process.send_signal(signal.SIGINT)
            if self.wait_for_end(30) is None:
                self.end()

    def end(self) -> None:
        """End whatever is left of it."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.Error):
            for process in [*psutil.Process(self._process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self._process.kill()
        self._process.wait()


def files_with_secrets(run: DisturbedRun) -> list[str]:
    """Return the files of the run's directory, of Ray's session and of the screen that hold a canary."""
    session = (run.config.run_dir / "logs").readlink().parent
    folders = [run.config.run_dir, session]
    files = [run.screen, *(file for folder in folders for file in folder.rglob("*") if file.is_file())]
    secrets = [secret.encode() for secret in CANARIES.values()]
    return [str(file) for file in files if any(secret in file.read_bytes() for secret in secrets)]


def trained(run_dir: Path, names: Sequence[str] = ("step", "drawn", "tokens", "weights")) -> list[dict[str, Any]]:
    """Return of each step the rows, the tokens, and the weights after it, as audit.jsonl has them."""
    rows = [row for row in read_audit(run_dir / "audit.jsonl") if row and "step" in row]
    return [{name: row[name] for name in names} for row in rows]
