"""What came of storms: a table of their faults, and whether each run is what the undisturbed one is."""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from rayqd.commands.doctor_run import examine_run
from rayqd.errors import RayqdError
from tests.chaos.disturbed_run import trained
from tests.chaos.faults import Fault

WHOLE = "whole"  # the run that was not disturbed
FAULTS, OPTIONS = "faults.jsonl", "options.json"
_SCREEN_BYTES = 6000


@dataclass(frozen=True)
class Storm:
    """One disturbed run on disk, with the undisturbed one beside it."""

    directory: Path  # of the storm

    @classmethod
    def found_in(cls, directory: Path) -> list[Storm]:
        """Return the storms of `storm.py --in DIRECTORY`."""
        return [cls(path.parent) for path in sorted(directory.glob(f"*/{FAULTS}"))]

    @property
    def run_dir(self) -> Path:
        return self.directory / "runs" / "disturbed"

    @property
    def whole_dir(self) -> Path:
        return self.directory.parent / WHOLE / "runs" / WHOLE

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The words of the command that made it."""
        return json.loads((self.directory / OPTIONS).read_text())

    @property
    def faults(self) -> list[Fault]:
        return [Fault(**json.loads(line)) for line in (self.directory / FAULTS).read_text().splitlines()]

    @property
    def has_ended(self) -> bool:
        """Whether both runs have come to their end."""
        return all((each / "result.json").is_file() for each in (self.run_dir, self.whole_dir))

    @functools.cached_property
    def audit(self) -> tuple[bool, str]:
        """Whether `rayqd doctor` finds every step as planned, and what it says."""
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                code = examine_run(self.run_dir)
        except RayqdError as error:
            return False, str(error)
        return code == 0, output.getvalue().strip().partition(": ")[2]

    @functools.cached_property
    def num_compared(self) -> int:
        """How many steps both runs have."""
        return min(len(trained(self.run_dir, ["step"])), len(trained(self.whole_dir, ["step"])))

    def differs_in(self) -> str:
        """Return in what it differs from the undisturbed run, as far as both have come; empty where in nothing.

        A real engine's sums depend on what it computes beside them, and so may the tokens that it draws.
        """
        names = ["step", "drawn"] if self.options["engine"] == "vllm" else ["step", "drawn", "tokens", "weights"]
        own, wanted = trained(self.run_dir, names), trained(self.whole_dir, names)
        for did, planned in zip(own, wanted, strict=False):
            for name in names:
                if did[name] != planned[name]:
                    return f"{name} of step {planned['step']}"
        if self.has_ended and len(own) != len(wanted):
            return "the number of steps"
        if self.has_ended and self.options["engine"] != "vllm":
            left, right = (load_file(each / "export" / "model.safetensors") for each in (self.whole_dir, self.run_dir))
            if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
                return "the export"
        return ""

    def find_fault(self) -> str:
        """Return what is not as it must be; empty where nothing is."""
        lost = [fault for fault in self.faults if fault.seconds is None]
        if lost:
            return f"after {lost[0]} no step came"
        if later := [fault for fault in self.faults if fault.kind == "end"]:
            return f"it gave up by itself: {later[0]}"
        if not self.audit[0]:
            return f"audit: {self.audit[1]}"
        if differing := self.differs_in():
            return f"it differs from the undisturbed run: {differing}"
        return ""

    def screen(self) -> str:
        """Return the end of what it printed."""
        with contextlib.suppress(OSError):
            return (self.directory / "disturbed.txt").read_bytes()[-_SCREEN_BYTES:].decode(errors="replace")
        return ""


class Table:
    """The faults of all storms by kind, and a line for all runs."""

    def __init__(self, storms: Sequence[Storm]) -> None:
        self._storms = storms
        self._faults = [fault for storm in storms for fault in storm.faults]

    def format(self) -> str:
        """Return it in Markdown."""
        return "\n".join([*self._rows(), "", *sorted(set(map(self._command, self._storms))), *self._conclusion()])

    def _rows(self) -> list[str]:
        lines = [
            "| fault | times | survived by itself | longest wait for a step, seconds: median | worst |",
            "| --- | --: | --: | --: | --: |",
        ]
        for key in sorted({(fault.kind, fault.role) for fault in self._faults}):
            own = [fault for fault in self._faults if (fault.kind, fault.role) == key]
            lines.append(_row(" ".join(key), own))
        return [*lines, _row("all", self._faults)]

    def _command(self, storm: Storm) -> str:
        words = " ".join(f"--{name} {value}" for name, value in storm.options.items())
        memory = psutil.virtual_memory().total / 2**30
        machine = f"{psutil.cpu_count()} cores, {memory:.0f} GiB, load {psutil.getloadavg()[2]:.1f}"
        return f"`storm.py {words}`, {machine}, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}."

    def _conclusion(self) -> list[str]:
        count = len(self._storms)
        audited = sum(storm.audit[0] for storm in self._storms)
        equal = sum(not storm.differs_in() for storm in self._storms)
        ended = sum(storm.has_ended for storm in self._storms)
        steps = sum(storm.num_compared for storm in self._storms)
        return [
            f"audit: {audited} of {count} runs as planned; equal to the undisturbed run: {equal} of {count}, "
            f"{ended} of them to the end and its export, {steps:,} steps in all.",
            *(f"{storm.directory.name}: {storm.audit[1]}" for storm in self._storms),
        ]


def _row(name: str, faults: Sequence[Fault]) -> str:
    seconds = [fault.seconds for fault in faults if fault.seconds is not None]
    survived = sum(fault.by_itself and fault.seconds is not None for fault in faults)
    median, worst = (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("-", "-")
    return f"| {name} | {len(faults)} | {survived} | {median} | {worst} |"
