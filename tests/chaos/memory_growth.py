"""Memory of driver and controller over a long run: `memory_growth.py [--prompts 10000] [--workers 4] [--batch 16]`.

Rollout workers with a deterministic engine write a completion for every prompt; Ray, its actors and the learner are the
real ones. What a process holds of its own (USS: shared memory, as the object store's, do not count) is read after steps
of the same distance, and must not come further than 100 MB from where it was after the first of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.chaos_config import make_config, make_model
from tests.chaos.disturbed_run import DisturbedRun

MOST_MB = 100.0
_READINGS = 8
_SECONDS = 3600.0
_ROLES = ("driver", "controller")


def main() -> int:
    """Make the run, print a table, and return 1 where a process has grown by more than it may."""
    options = parse()
    steps = -(-options.prompts // options.batch)
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        directory = Path(scratch)
        config = make_config(
            make_model(directory),
            make_rows(directory, options.prompts),
            directory,
            "long",
            distill={"lmbda": 1.0},
            rollout={"num_workers": options.workers, "max_staleness": 2},
            learner={"batch_size": options.batch, "steps": steps},
            checkpoint={"every": max(1, steps // _READINGS)},
        )
        run = DisturbedRun(config, directory)
        try:
            readings = read_memory(run, steps)
        finally:
            run.stop()
            run.end()
        if not run.is_done:
            print(run.output[-3000:])
            return 1
    print("| steps | " + " | ".join(f"{role}, MB" for role in _ROLES) + " |\n| --: | --: | --: |")
    for step, held in readings:
        print(f"| {step} | " + " | ".join(f"{each:.1f}" for each in held) + " |")
    first = readings[0][1]
    return int(any(abs(now - begun) > MOST_MB for _, held in readings for now, begun in zip(held, first, strict=True)))


def read_memory(run: DisturbedRun, steps: int) -> list[tuple[int, list[float]]]:
    """Return what each of the roles held, in MB, after the first step and then at equal distances."""
    readings: list[tuple[int, list[float]]] = []
    for number in range(_READINGS + 1):
        due = max(1, (steps - 1) * number // _READINGS)
        if not run.wait(lambda: run.step >= due, _SECONDS):  # noqa: B023
            break
        held = [sum(process.memory_full_info().uss for process in run.processes(role)) / 1e6 for role in _ROLES]
        readings.append((run.step, held))
    run.wait_for_end()
    return readings


def make_rows(directory: Path, number: int) -> Path:
    """Write so many prompts, no two alike."""
    file = directory / "rows.jsonl"
    rows = ({"prompt": f"Say {i}!", "completion": f"{chr(97 + i % 26) * 9} {i}."} for i in range(number + 4))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4, help="rollout workers")
    parser.add_argument("--batch", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
