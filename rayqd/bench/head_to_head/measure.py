"""A peer's steps, in a process of its own: measured, or why not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rayqd.bench.head_to_head.contender_process import ProcessEnd, one_gpu, run_contender
from rayqd.bench.head_to_head.peers import Peer, missing_packages
from rayqd.bench.head_to_head.result import HeadToHeadResult, Status
from rayqd.bench.head_to_head.step_times import WARM_UP_STEPS, StepTimes, read_step_times
from rayqd.bench.head_to_head.workload import Workload

_OUT_OF_MEMORY = ("out of memory", "OutOfMemory", "not enough memory", "can't allocate memory", "MemoryError")


def measure_peer(peer: Peer, workload: Workload, logs: Path, *, limit_seconds: float) -> HeadToHeadResult:
    """Run the peer's steps; its output stays in `logs`. Out of memory it is tried with less, once, where it can."""
    if why := why_skipped(peer, workload):
        return _without_numbers(peer, workload, "skipped", why)
    result = _without_numbers(peer, workload, "skipped", "it was not tried")
    for attempt, (tried, settings) in enumerate(_attempts(peer, workload)):
        result = replace(_attempt(peer, tried, logs, attempt, limit_seconds), settings=settings)
        if result.status == "measured" or not any(sign in result.why for sign in _OUT_OF_MEMORY):
            break
    return result


def why_skipped(peer: Peer, workload: Workload) -> str:
    """Say why the peer cannot be measured here; empty where it can."""
    if workload.arm not in peer.arms:
        return peer.why_not
    if missing := missing_packages(peer.packages):
        return f"{missing[0]} is not installed: pip install {' '.join(missing)}"
    return ""


def _attempts(peer: Peer, workload: Workload) -> Iterator[tuple[Workload, str]]:
    yield workload, ""
    if peer.heeds_checkpointing and not workload.gradient_checkpointing:
        yield (
            replace(workload, gradient_checkpointing=True),
            "gradient checkpointing, without which it ran out of memory",
        )


def _attempt(peer: Peer, workload: Workload, logs: Path, attempt: int, limit_seconds: float) -> HeadToHeadResult:
    stem = f"{workload.arm}.{peer.name}" + (f".{attempt + 1}" if attempt else "")
    given, steps, log = (logs / f"{stem}.{kind}" for kind in ("workload.json", "steps.jsonl", "log"))
    workload.write(given)
    steps.unlink(missing_ok=True)
    command = [sys.executable, "-m", peer.module, str(given), str(steps)]
    environment = one_gpu(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    end = run_contender(command, log, environment, limit_seconds=limit_seconds)
    return conclude(peer, workload, end, read_step_times(steps), log)


def conclude(peer: Peer, workload: Workload, end: ProcessEnd, times: StepTimes, log: Path) -> HeadToHeadResult:
    """Return the peer's row. Steps that were done count, also where the process was ended or fell after them."""
    if times.median_seconds is None:
        return _without_numbers(peer, workload, "failed", explain_failure(end, len(times.ends), log))
    return HeadToHeadResult(
        arm=workload.arm,
        contender=peer.name,
        label=peer.label,
        status="measured",
        why="" if end.exit_code == 0 else f"after the last of its steps: {explain_failure(end, len(times.ends), log)}",
        rollouts_alone=peer.rollouts_alone,
        seconds=times.median_seconds,
        step_seconds=tuple(times.seconds),
        cpu_seconds=times.median_cpu_seconds(end.cpu),
        trained_tokens=workload.trained_tokens,
        first_step_seconds=times.ends[0] - end.began,
        total_seconds=end.seconds,
        peak_bytes=end.peak_bytes,
    )


def explain_failure(end: ProcessEnd, num_steps: int, log: Path) -> str:
    """Say how a contender's process ended, with its last line and where the others are."""
    if end.is_late:
        how = f"ended after {end.seconds:.0f} s"
    elif end.exit_code == 0:
        how = f"ended after {num_steps} of the {WARM_UP_STEPS + 1} steps that it takes"
    elif end.exit_code == -signal.SIGKILL:
        how = "killed from outside, as the kernel does where a machine is out of memory"
    else:
        how = f"exit code {end.exit_code}"
    return f"{how}: {end.last_line or 'it wrote nothing'} ({log})"


def _without_numbers(peer: Peer, workload: Workload, status: Status, why: str) -> HeadToHeadResult:
    return HeadToHeadResult(
        arm=workload.arm,
        contender=peer.name,
        label=peer.label,
        status=status,
        why=why,
        rollouts_alone=peer.rollouts_alone,
    )
