"""`make chaos`: many faults in a run, or in several beside each other, and a table of what came of them.

    storm.py [--faults 60] [--seed 0] [--storms 1] [--engine fake] [--workers 1] [--staleness 2]
             [--kinds kill,stop,damage] [--cores N] [--in DIR --minutes M]
    storm.py --table DIR [DIR ...]

The run beside them is not disturbed; all must train the same, step by step, and export the same bits. With --in and
--minutes a storm is made in pieces: each goes on where the one before was stopped, as the user's own command does.
With --storms N there are N of them, with seeds from --seed on, each with a Ray of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from concurrent import futures
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.chaos_config import make_config, make_data, make_model
from tests.chaos.disturbed_run import DisturbedRun
from tests.chaos.faults import Deadline, Fault, disturb
from tests.chaos.storm_table import FAULTS, OPTIONS, WHOLE, Storm, Table

STALL_SECONDS = 20
KINDS = {  # kind: the roles, by how often each is taken
    "kill": ["rollout"] * 4 + ["teacher"] * 4 + ["learner"] * 3 + ["controller"] * 2 + ["driver"],
    "stop": ["rollout"] * 2 + ["teacher"] * 2 + ["learner"] * 2 + ["controller"],
    "damage": ["learner", "driver"],
}
SHARES = {"kill": 8, "stop": 1, "damage": 1}
_DAY_SECONDS = 86400.0
_START_SECONDS = 1200.0  # on cores that many others keep busy
_OVERSHOOT = 2  # steps that a run does while somebody looks for the next victim
_OBJECT_STORE_BYTES = 300_000_000  # the tiny model's batches need a hundredth of it


def main() -> int:
    """Disturb, print the table, and return 1 where something was not as it must be."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    options = parse()
    if options.table:
        return show([each for directory in options.table for each in Storm.found_in(directory)])
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        directory = options.directory or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        deadline = Deadline(60 * options.minutes)
        whole, *disturbed = make_runs(directory, options)
        if options.storms == 1 and not undisturbed(whole, deadline):  # few cores: one after the other
            print(f"the undisturbed run has come to step {whole.step} of {whole.config.learner.steps}")
            return int(not deadline.is_over)
        with futures.ThreadPoolExecutor(len(disturbed) + 1) as threads:
            beside = threads.submit(undisturbed, whole, deadline)
            storms = [
                threads.submit(storm, run, options, options.seed + number, deadline)
                for number, run in enumerate(disturbed)
            ]
            try:
                futures.wait([beside, *storms])
            except KeyboardInterrupt:  # the runs have it too, and end
                deadline.pull()
        errors = [error for each in (beside, *storms) if (error := each.exception())]
        for error in errors:
            traceback.print_exception(error)
        return show(Storm.found_in(directory)) or int(bool(errors))


def show(storms: list[Storm]) -> int:
    """Print the table, and what runs wrote that are not as they must be; return 1 where there are such."""
    table = Table(storms)
    print(table.format())
    for storm in storms:
        if fault := storm.find_fault():
            print(f"\n{storm.directory}: {fault}\n{storm.screen()}")
    return int(any(storm.find_fault() for storm in storms) or not storms)


def make_runs(directory: Path, options: argparse.Namespace) -> list[DisturbedRun]:
    """Return the undisturbed run and those that are disturbed, none of them started."""
    model, data = make_model(directory), make_data(directory)
    names = [WHOLE, *(f"seed-{options.seed + number}" for number in range(options.storms))]
    runs: list[DisturbedRun] = []
    for name in names:
        own = directory / name
        own.mkdir(exist_ok=True)
        shown = {**vars(options), "directory": None, "table": None, "minutes": None}
        (own / OPTIONS).write_text(json.dumps({key: value for key, value in shown.items() if value is not None}))
        runs.append(make_run(model, data, own, options))
    return runs


def make_run(model: Path, data: Path, directory: Path, options: argparse.Namespace) -> DisturbedRun:
    """Return a run in `directory`, not started yet, with the settings that all have."""
    name = WHOLE if directory.name == WHOLE else "disturbed"
    sections: dict[str, Any] = {
        "learner": {
            "steps": (distance(options) + _OVERSHOOT) * (options.faults + 1),
            "num_workers": options.workers,
        },
        "rollout": {"max_staleness": options.staleness},
        "ray": {"stall_seconds": STALL_SECONDS},
    }
    config = make_config(model, data, directory, name, **sections)
    return DisturbedRun(config, directory, options.engine, starts=False, environment=make_environment(options))


def make_environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables by which several Rays on one machine leave each other room."""
    cores = options.cores or max(2, (os.cpu_count() or 2) // (options.storms if options.storms > 1 else 1))
    resources: dict[str, float] = {"CPU": cores}
    environment = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(_OBJECT_STORE_BYTES)}
    if options.engine == "fake":
        resources["GPU"] = 0
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment | {"RAY_OVERRIDE_RESOURCES": json.dumps(resources)}


def distance(options: argparse.Namespace) -> int:
    """Return the steps from a fault to the next: one more than can have been made before it."""
    return options.staleness + 1


def undisturbed(whole: DisturbedRun, deadline: Deadline) -> bool:
    """Bring the run to its end, if there is time; return whether it is there."""
    if whole.is_done:
        return True
    whole.start()
    if whole.wait_for_end(deadline.left(_DAY_SECONDS)) is None:
        whole.stop()
    return whole.is_done


def storm(run: DisturbedRun, options: argparse.Namespace, seed: int, deadline: Deadline) -> None:
    """Disturb the run until it has had its faults, or time is up, and bring it to its end, if there is time."""
    log = run.screen.with_name(FAULTS)
    log.touch()
    number = len(log.read_text().splitlines())
    if run.is_done:
        return
    last_step = run.config.learner.steps - distance(options)
    run.start()
    try:
        run.wait_for_start(deadline.left(_START_SECONDS))
        while not deadline.is_over and number < options.faults and run.step < last_step:
            after = run.step + 1
            if not run.wait(lambda: run.step >= after, deadline.left(run.patience_seconds)):  # noqa: B023
                if deadline.is_over or run.is_done:
                    break
                fault = begin_again(run, deadline)
            else:
                draw = random.Random(f"{seed} {number}")
                kind = draw.choice([kind for kind in options.kinds.split(",") for _ in range(SHARES[kind])])
                role = draw.choice(KINDS[kind])
                fault = disturb(run, kind, role, draw, num_steps=distance(options), deadline=deadline)
            number += 1
            if fault:
                print(f"seed {seed}, {number}: {fault}", flush=True)
                with log.open("a") as stream:
                    stream.write(json.dumps(asdict(fault)) + "\n")
                if fault.seconds is None:  # neither by itself nor by the same command
                    return
        run.wait_for_end(deadline.left(_DAY_SECONDS))
    finally:
        run.stop()
        run.end()


def begin_again(run: DisturbedRun, deadline: Deadline) -> Fault:
    """Give the command again to a run that gave up, or stands still, though the last fault was over."""
    step, began = run.step, time.time()
    run.stop()
    run.start()
    seconds = run.wait_for_steps(step + 1, began, deadline.left(run.patience_seconds))
    return Fault(kind="end", role="later", step=step, seconds=seconds, by_itself=False, began=began)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=60, help="of each storm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storms", type=int, default=1, help="how many beside each other, with seeds from --seed on")
    parser.add_argument("--engine", choices=["fake", "vllm"], default="fake")
    parser.add_argument("--workers", type=int, default=1, help="learner workers")
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--kinds", default="kill,stop,damage")
    parser.add_argument("--cores", type=int, help="that each run's Ray is told of; none: its share of the machine's")
    parser.add_argument("--in", dest="directory", type=Path, help="where the runs stay, for another piece")
    parser.add_argument("--minutes", type=float, default=_DAY_SECONDS / 60)
    parser.add_argument("--table", type=Path, nargs="+", help="only the table of storms that were made, by their --in")
    return parser.parse_args()


if __name__ == "__main__":
    began = time.monotonic()
    code = main()
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(code)
