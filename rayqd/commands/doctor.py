"""`rayqd doctor`: what this machine can run, what it cannot, and how to fix that."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from rayqd.config import Config
from rayqd.doctor import machine, parts, software
from rayqd.doctor.finding import Finding, print_finding
from rayqd.doctor.probe import Probe, start_probes


def findings(config: Config) -> Iterator[Finding]:
    """Run every check once: what is quick first, then what other processes found out meanwhile."""
    probes = start_probes(software.PROBES | parts.PROBES)
    yield software.check_python()
    yield from software.check_packages()
    yield software.check_quickstart_model()
    yield machine.check_cores()
    yield machine.check_bfloat16()
    yield machine.check_memory()
    yield machine.check_disk("disk of runs_dir", config.runs_dir)
    yield machine.check_temporary_disk()
    yield machine.check_shared_memory()
    outcomes = {name: probe.outcome() for name, probe in probes.items()}
    yield from software.check_torch_companions(outcomes)
    yield software.check_gpus(outcomes["gpus"])
    yield from software.check_c_compiler(outcomes["gpus"])
    yield software.check_vllm_backend(outcomes["vllm"], outcomes["gpus"])
    yield parts.check_kernel(outcomes["4-bit kernel"])
    yield parts.check_ray(outcomes["ray task"])
    if len(outcomes["gpus"].value or ()) > 1:
        yield parts.check_nccl(Probe(parts.NCCL).outcome())
    yield parts.check_dtype(Probe(parts.TIMING).outcome())
    yield from parts.check_storage(config)


def examine(config: Config) -> int:
    """Print every finding; return the exit code, 1 if something fails."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    marks: list[str] = []
    for finding in findings(config):
        print_finding(finding, coloured)
        marks.append(finding.mark)
    print(f"\n{len(marks)} checks: {marks.count('fail')} failed, {marks.count('warn')} to look at")
    return 1 if "fail" in marks else 0
