"""`make chaos`: many faults in one run, and a table of what came of them.

    storm.py [--faults 60] [--seed 0] [--workers 1] [--staleness 2] [--kinds kill,stop,damage]

The run beside it is not disturbed; both must train the same, step by step, and export the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from rayqd.commands.doctor_run import examine_run
from tests.chaos.chaos_config import make_config, make_data, make_model
from tests.chaos.disturbed_run import DisturbedRun, Fault, disturb, trained

STEPS_BETWEEN = 6
STALL_SECONDS = 30
KINDS = {  # kind: the roles, by how often each is taken
    "kill": ["rollout"] * 4 + ["teacher"] * 4 + ["learner"] * 3 + ["controller"] * 2 + ["driver"],
    "stop": ["learner", "controller"],
    "damage": ["learner", "driver"],
}
SHARES = {"kill": 8, "stop": 1, "damage": 1}


def main() -> int:
    """Disturb, print the table, and return 1 where something was not as it must be."""
    options = parse()
    draw = random.Random(options.seed)
    kinds = [kind for kind in options.kinds.split(",") for _ in range(SHARES[kind])]
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        directory = Path(scratch)
        whole = start(directory, "whole", options)
        if whole.wait_for_end(3600) != 0:
            print(whole.output)
            return 1
        run = start(directory, "disturbed", options)
        faults: list[Fault] = []
        try:
            for number in range(options.faults):
                run.wait(lambda: run.step >= STEPS_BETWEEN * (number + 1), 600)  # noqa: B023
                kind = draw.choice(kinds)
                fault = disturb(run, kind, draw.choice(KINDS[kind]), draw)
                if fault:
                    faults.append(fault)
                    print(f"{len(faults)}: {fault}", flush=True)
                if fault and fault.seconds is None:
                    break
            code = run.wait_for_end(1200)
        finally:
            if run.runs:
                run.end()
        ok = code == 0
        print(table(faults, options, whole, run, ok=ok))
        if not ok:
            print(run.output)
        return 0 if ok and same(whole, run) else 1


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="learner workers")
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--kinds", default="kill,stop,damage")
    return parser.parse_args()


def start(directory: Path, name: str, options: argparse.Namespace) -> DisturbedRun:
    """Start a run with the settings that both have."""
    sections: dict[str, Any] = {
        "learner": {"steps": STEPS_BETWEEN * (options.faults + 1), "num_workers": options.workers},
        "rollout": {"max_staleness": options.staleness},
        "ray": {"stall_seconds": STALL_SECONDS},
    }
    return DisturbedRun(
        make_config(make_model(directory), make_data(directory), directory, name, **sections), directory
    )


def same(whole: DisturbedRun, run: DisturbedRun) -> bool:
    """Return whether both trained the same at every step, and came to the same bits."""
    left, right = (load_file(each.config.run_dir / "export" / "model.safetensors") for each in (whole, run))
    bits = left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return bits and trained(whole) == trained(run)


def audited(run: DisturbedRun) -> str:
    """Return what `rayqd doctor` says of it."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        examine_run(run.config.run_dir)
    return output.getvalue().strip().partition(": ")[2]


def table(faults: list[Fault], options: argparse.Namespace, whole: DisturbedRun, run: DisturbedRun, *, ok: bool) -> str:
    """Format what came of each kind of fault."""
    lines = [
        "| fault | times | went on by itself | seconds to the next step: median | worst |",
        "| --- | --: | --: | --: | --: |",
    ]
    for key in sorted({(fault.kind, fault.role) for fault in faults}):
        own = [fault for fault in faults if (fault.kind, fault.role) == key]
        seconds = [fault.seconds for fault in own if fault.seconds is not None]
        by_itself = sum(fault.by_itself and fault.seconds is not None for fault in own)
        median, worst = (f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("-", "-")
        lines.append(f"| {' '.join(key)} | {len(own)} | {by_itself} | {median} | {worst} |")
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{psutil.cpu_count()} cores, {memory:.0f} GiB, load {psutil.getloadavg()[2]:.1f}"
    lines += [
        "",
        f"`storm.py --faults {options.faults} --seed {options.seed} --workers {options.workers} --staleness "
        f"{options.staleness} --kinds {options.kinds}`, {machine}, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}.",
        f"audit: {audited(run)}; bit-equal to the undisturbed run: {'yes' if ok and same(whole, run) else 'NO'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(code)
