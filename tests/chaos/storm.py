"""`make chaos`: many faults in one run, and a table of what came of them.

    storm.py [--faults 60] [--seed 0] [--workers 1] [--staleness 2] [--kinds kill,stop,damage] [--in DIR --minutes M]

The run beside it is not disturbed; both must train the same, step by step, and export the same bits. With --in and
--minutes a storm is made in pieces: each goes on where the one before was stopped, as the user's own command does.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from rayqd.commands.doctor_run import examine_run
from tests.chaos.chaos_config import make_config, make_data, make_model
from tests.chaos.disturbed_run import DisturbedRun, Fault, disturb, trained

STEPS_BETWEEN = 2
STALL_SECONDS = 20
KINDS = {  # kind: the roles, by how often each is taken
    "kill": ["rollout"] * 4 + ["teacher"] * 4 + ["learner"] * 3 + ["controller"] * 2 + ["driver"],
    "stop": ["rollout"] * 2 + ["teacher"] * 2 + ["learner"] * 2 + ["controller"],
    "damage": ["learner", "driver"],
}
SHARES = {"kill": 8, "stop": 1, "damage": 1}


def main() -> int:
    """Disturb, print the table, and return 1 where something was not as it must be."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        directory = options.directory or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 60 * options.minutes
        model, data = make_model(directory), make_data(directory)
        whole, run = (run_of(model, data, directory, name, options) for name in ("whole", "disturbed"))
        if not undisturbed(whole, deadline):
            print(f"the undisturbed run has come to step {whole.step} of {whole.config.learner.steps}")
            return int(time.monotonic() < deadline)
        log = directory / "faults.jsonl"
        ended = storm(run, options, log, deadline)
        faults = [Fault(**json.loads(line)) for line in log.read_text().splitlines()]
        print(table(faults, options, whole, run, ended=ended))
        good = same(whole, run, ended=ended) and all(fault.seconds is not None for fault in faults)
        if not good:
            print(run.output)
        return int(not good)


def undisturbed(whole: DisturbedRun, deadline: float) -> bool:
    """Bring the run to its end, if there is time; return whether it is there."""
    if is_done(whole):
        return True
    whole.start()
    if whole.wait_for_end(max(1.0, deadline - time.monotonic())) is None:
        whole.stop()
    return is_done(whole)


def storm(run: DisturbedRun, options: argparse.Namespace, log: Path, deadline: float) -> bool:
    """Disturb the run until it has had its faults, or time is up; return whether it has come to its end."""
    log.touch()
    number = len(log.read_text().splitlines())
    if is_done(run):
        return True
    run.start()
    try:
        while number < options.faults:
            last = run.step
            if not run.wait(lambda: run.step >= last + STEPS_BETWEEN, deadline - time.monotonic()):  # noqa: B023
                break
            draw = random.Random(f"{options.seed} {number}")
            kind = draw.choice([kind for kind in options.kinds.split(",") for _ in range(SHARES[kind])])
            fault = disturb(run, kind, draw.choice(KINDS[kind]), draw)
            number += 1
            if fault:
                print(f"{number}: {fault}", flush=True)
                with log.open("a") as stream:
                    stream.write(json.dumps(asdict(fault)) + "\n")
        if number >= options.faults:
            run.wait_for_end(max(1.0, deadline - time.monotonic()))
        run.stop()
    finally:
        if run.runs:
            run.end()
    return is_done(run)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="learner workers")
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--kinds", default="kill,stop,damage")
    parser.add_argument("--in", dest="directory", type=Path, help="where the runs stay, for another piece")
    parser.add_argument("--minutes", type=float, default=24 * 60)
    return parser.parse_args()


def run_of(model: Path, data: Path, directory: Path, name: str, options: argparse.Namespace) -> DisturbedRun:
    """Return a run, not started yet, with the settings that both have."""
    sections: dict[str, Any] = {
        "learner": {"steps": STEPS_BETWEEN * (options.faults + 1), "num_workers": options.workers},
        "rollout": {"max_staleness": options.staleness},
        "ray": {"stall_seconds": STALL_SECONDS},
    }
    return DisturbedRun(make_config(model, data, directory, name, **sections), directory, starts=False)


def is_done(run: DisturbedRun) -> bool:
    """Return whether it has its result."""
    return (run.config.run_dir / "result.json").is_file() and run.step >= run.config.learner.steps


def same(whole: DisturbedRun, run: DisturbedRun, *, ended: bool) -> bool:
    """Return whether both trained the same at every step, and came to the same bits."""
    did, wanted = trained(run), trained(whole)
    if not ended:
        return did == wanted[: len(did)]
    left, right = (load_file(each.config.run_dir / "export" / "model.safetensors") for each in (whole, run))
    bits = left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return bits and did == wanted


def audited(run: DisturbedRun) -> str:
    """Return what `rayqd doctor` says of it."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        examine_run(run.config.run_dir)
    return output.getvalue().strip().partition(": ")[2]


def table(
    faults: list[Fault], options: argparse.Namespace, whole: DisturbedRun, run: DisturbedRun, *, ended: bool
) -> str:
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
    how = "" if ended else f" as far as step {run.step}"
    lines += [
        "",
        f"`storm.py --faults {options.faults} --seed {options.seed} --workers {options.workers} --staleness "
        f"{options.staleness} --kinds {options.kinds}`, {machine}, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}.",
        f"audit: {audited(run)}; bit-equal to the undisturbed run{how}: "
        f"{'yes' if same(whole, run, ended=ended) else 'NO'}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(code)
