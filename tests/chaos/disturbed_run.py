"""A run in a process of its own, and what can be done to its processes and files from outside.

The engine is deterministic, the model tiny; Ray, its actors and the learner are the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rayqd.config import Config
from rayqd.config.resolved import to_toml
from rayqd.runs.audit_file import read_audit

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 200.0  # for the next step, after which a fault was not survived
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

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self, config: Config, directory: Path, engine: str = "fake", *, starts: bool = True) -> None:
        self.config = config
        self._file = directory / f"{config.name}.toml"
        self._file.write_text(to_toml(config))
        self.screen = directory / f"{config.name}.txt"
        self._engine = engine
        if starts:
            self.start()

    def start(self) -> None:
        """Give the command, once more."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, self._engine, f"@{self._file}"],
            env=os.environ | CANARIES | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=self.screen.open("a"),
            stderr=subprocess.STDOUT,
        )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        return self.screen.read_text()

    @property
    def step(self) -> int:
        """The last step that metrics.jsonl knows of."""
        return max((row["step"] for row in self._rows()), default=0)

    @property
    def num_told(self) -> float:
        """When the last step's line was written, by the epoch's clock."""
        return max((row["time"] for row in self._rows()), default=0.0)

    def _rows(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError):
            lines = (self.config.run_dir / "metrics.jsonl").read_bytes().splitlines()[-4:]
            rows = [json.loads(line) for line in lines if line.endswith(b"}") and b'"step"' in line]
            return [row for row in rows if row.get("event") == "step"]
        return []

    def processes(self, role: str) -> list[psutil.Process]:
        """Those of a role; its driver has the raylet below it, and that all others."""
        if self._process is None:
            return []
        driver = psutil.Process(self._process.pid)
        if role == "driver":
            return [driver]
        found: list[psutil.Process] = []
        for process in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith(TITLES[role]):
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
            time.sleep(0.05)
        return False

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
        assert self._process is not None
        with contextlib.suppress(psutil.Error):
            for process in [*psutil.Process(self._process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What was done to a run, and what became of it."""

    kind: str  # "kill", "stop", "damage"
    role: str
    step: int  # the last one before
    seconds: float | None  # to the next step that was done; None where none came
    by_itself: bool  # nobody had to give the command again


def disturb(run: DisturbedRun, kind: str, role: str, draw: random.Random) -> Fault | None:
    """Do it, wait for the next step; None where there is no such process just now."""
    step, began = run.step, time.time()
    if kind == "damage":
        file = draw.choice(checkpoint_files(run))
        flip(file, draw)
    with contextlib.suppress(psutil.Error):
        run.wait(lambda: bool(run.processes(role)))  # one that was killed before may not be back
        found = run.processes(role)
        if not found:
            return None
        step, began = run.step, time.time()
        victim = draw.choice(found)
        victim.send_signal(signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
    by_itself = role != "driver"
    if not by_itself:
        run.wait_for_end()
        run.start()
    came = run.wait(lambda: run.num_told > began + 0.2, WAIT_SECONDS)
    if not came and not run.runs:  # it gave up
        by_itself = False
        run.start()
        came = run.wait(lambda: run.num_told > began + 0.2, WAIT_SECONDS)
    return Fault(kind=kind, role=role, step=step, seconds=time.time() - began if came else None, by_itself=by_itself)


def checkpoint_files(run: DisturbedRun) -> list[Path]:
    """The files of the newest checkpoint."""
    newest = max((run.config.run_dir / "checkpoints").glob("step-??????"))
    return sorted(newest.iterdir())


def flip(file: Path, draw: random.Random) -> None:
    """Flip one bit of it."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def files_with_secrets(run: DisturbedRun) -> list[str]:
    """Return the files of the run's directory, of Ray's session and of the screen that hold a canary."""
    session = (run.config.run_dir / "logs").readlink().parent
    folders = [run.config.run_dir, session]
    files = [run.screen, *(file for folder in folders for file in folder.rglob("*") if file.is_file())]
    secrets = [secret.encode() for secret in CANARIES.values()]
    return [str(file) for file in files if any(secret in file.read_bytes() for secret in secrets)]


def trained(run: DisturbedRun) -> list[Any]:
    """Return of each step the rows, the tokens, and the weights after it."""
    rows = [row for row in read_audit(run.config.run_dir / "audit.jsonl") if row and "step" in row]
    return [[row[name] for name in ("step", "drawn", "tokens", "weights")] for row in rows]
