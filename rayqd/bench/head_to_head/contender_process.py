"""A contender's process: everything that it prints goes to a file, and its memory and CPU time are looked at."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rayqd.bench.head_to_head.process_watch import CpuClock, ProcessWatch

_LINES_OF_THE_END = 80
_ERROR = re.compile(r"(\[rank\d+\]: ?)?(rayqd: error: |[\w.]*(Error|Exception|Interrupt|OutOfMemory)\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnd:
    """How a contender's process ended."""

    began: float  # seconds since the epoch
    seconds: float
    exit_code: int
    is_late: bool  # it was ended, as it took longer than it may
    last_line: str  # that it wrote
    peak_bytes: int | None
    cpu: CpuClock  # of all its processes


def run_contender(
    command: Sequence[str], log: Path, environment: Mapping[str, str], *, limit_seconds: float
) -> ProcessEnd:
    """Run `command` to its end, or for `limit_seconds`, with what it prints in `log`."""
    began = time.time()
    is_late = False
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        with ProcessWatch(process.pid, on_gpu=torch.cuda.is_available()) as watch:
            try:
                process.wait(limit_seconds)
            except subprocess.TimeoutExpired:
                is_late = True
            finally:
                _end(process)
                _end_what_is_left(process.pid)
    return ProcessEnd(
        began=began,
        seconds=time.time() - began,
        exit_code=process.returncode,
        is_late=is_late,
        last_line=last_line(log),
        peak_bytes=watch.peak_bytes,
        cpu=watch.cpu,
    )


def one_gpu(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with the first of its GPUs alone: peers are measured on one."""
    first = environment.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    return {**environment, "CUDA_VISIBLE_DEVICES": first or "0"} if torch.cuda.is_available() else dict(environment)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process, where it has not ended, with all that it started: as Ctrl-C does first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)


def _end_what_is_left(group: int) -> None:
    """End the processes that the ended one leaves behind: they would hold memory that the next contender needs."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def last_line(log: Path) -> str:
    """Return the line of `log` that names an error, the last of its end; else its very last; cut to 300 characters.

    Libraries go on to write of what they shut down.
    """
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-_LINES_OF_THE_END:] if _ERROR.match(line)]
    return (errors or lines or [""])[-1][:300]
