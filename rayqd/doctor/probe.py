"""Imports tried in processes of their own, all at once: a crash in a driver or a library is then a finding too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from rayqd.doctor.finding import Finding

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a probe printed last, as JSON, or why it could not."""

    value: Any = None
    failure: str = ""
    is_late: bool = False  # it gave no answer in time, which says nothing of what was tried


class Probe:
    """A Python program that prints one line of JSON last."""

    def __init__(self, program: str) -> None:
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"}
        self._deadline = time.monotonic() + TIMEOUT_SECONDS
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def outcome(self) -> Outcome:
        """Wait for the program, TIMEOUT_SECONDS from its start at most."""
        try:
            printed, complaints = self._process.communicate(timeout=max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return Outcome(failure=f"unknown: no answer in {TIMEOUT_SECONDS:.0f} s", is_late=True)
        code = self._process.returncode
        if code < 0:
            return Outcome(failure=f"killed by {signal.Signals(-code).name}")
        if code > 0:
            return Outcome(failure=_last_line(complaints) or f"exit code {code}")
        try:
            return Outcome(value=json.loads(_last_line(printed)))
        except ValueError:
            return Outcome(failure=f'unexpected answer "{_last_line(printed)}"')


def unknown(subject: str, outcome: Outcome) -> Finding:
    """Report a probe that gave no answer in time: a machine that is busy is no fault of what was tried."""
    fix = "run `rayqd doctor` again when the machine is less busy"
    return Finding(subject=subject, mark="warn", text=outcome.failure, fix=fix)


def start_probes(programs: dict[str, str]) -> dict[str, Probe]:
    """Start every program at once, by name; each has TIMEOUT_SECONDS from now."""
    return {name: Probe(program) for name, program in programs.items()}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
