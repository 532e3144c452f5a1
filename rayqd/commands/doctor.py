"""`rayqd doctor`: what this machine can run, what it cannot, and how to mend that."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from rayqd.config import Config
from rayqd.doctor import machine, software
from rayqd.doctor.finding import Finding, show
from rayqd.doctor.probe import start_probes


def findings(config: Config) -> Iterator[Finding]:
    """Every check once: what is quick first, then what other processes found meanwhile."""
    probes = start_probes(software.PROBES)
    yield software.python()
    yield from software.packages()
    yield software.embedded_model()
    yield machine.cores()
    yield machine.bfloat16()
    yield machine.memory()
    yield machine.disk("disk of runs_dir", config.runs_dir)
    yield machine.temporary_disk()
    yield machine.shared_memory()
    outcomes = {name: probe.outcome() for name, probe in probes.items()}
    yield from software.companions(outcomes)
    yield software.gpus(outcomes["gpus"])
    yield from software.c_compiler(outcomes["gpus"])
    yield software.vllm_backend(outcomes["vllm"], outcomes["gpus"])


def examine(config: Config) -> int:
    """Prints every finding; the exit code is 1 if something fails, else 0."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    marks: list[str] = []
    for finding in findings(config):
        show(finding, coloured)
        marks.append(finding.mark)
    print(f"\n{len(marks)} checks: {marks.count('fail')} failed, {marks.count('warn')} to look at")
    return 1 if "fail" in marks else 0
