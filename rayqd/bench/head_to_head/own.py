"""rayqd's own steps: the whole command, through Ray, and what its run says of itself."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayqd.bench.head_to_head.contender_process import ProcessEnd, run_contender
from rayqd.bench.head_to_head.measure import explain_failure
from rayqd.bench.head_to_head.result import OWN, HeadToHeadResult
from rayqd.bench.head_to_head.step_times import WARM_UP_STEPS, StepTimes
from rayqd.bench.head_to_head.workload import Workload
from rayqd.config import Config
from rayqd.config.resolved import to_toml, with_absolute_paths, with_values
from rayqd.events import StepEvent
from rayqd.runs.metrics_file import read_timed_events
from rayqd.runs.paths import EXPORT, RESULT
from rayqd.runs.result_file import read_result

# Of fewer steps half of those that count have no scoring in them: it was done ahead, in the first one, which does not.
_LEAST_STEPS_AHEAD = 6


def own_config(config: Config, workload: Workload, directory: Path) -> Config:
    """Return the settings of the run: those of `config`, with the workload's model, requests and steps."""
    values: Mapping[str, object] = {
        "name": workload.arm,
        "runs_dir": directory,
        "storage": None,
        "model.name": workload.model,
        "model.dtype": workload.dtype,
        "data.source": str(directory / f"{workload.arm}.jsonl"),
        "data.max_length": max(64, workload.length),
        "data.min_room": 1,
        "eval.source": str(directory / f"{workload.arm}.held-out.jsonl"),
        "eval.num_rows": len(workload.held_out),
        "distill.lmbda": 1.0 if workload.arm == "on-policy" else 0.0,
        "distill.beta": workload.beta,
        "rollout.min_new_tokens": workload.new_tokens,
        "rollout.max_new_tokens": workload.new_tokens,
        "learner.steps": workload.steps,
        "learner.batch_size": workload.num_sequences,
        "checkpoint.every": workload.steps,
    }
    if config.teacher.prefetch_steps is None and workload.steps < _LEAST_STEPS_AHEAD:
        values = {**values, "teacher.prefetch_steps": 0}
    return with_values(with_absolute_paths(config), values)


def measure_own(
    config: Config, workload: Workload, logs: Path, runs: Path, *, limit_seconds: float
) -> HeadToHeadResult:
    """Run `rayqd distill` on the workload; its output stays in `logs`, and the run in `runs`."""
    own = own_config(config, workload, runs)
    write_rows(own, workload)
    file, log = logs / f"{workload.arm}.{OWN}.toml", logs / f"{workload.arm}.{OWN}.log"
    file.write_text(to_toml(own))
    command = [sys.executable, "-m", "rayqd", "distill", f"@{file}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    end = run_contender(command, log, environment, limit_seconds=limit_seconds)
    return conclude_own(own.run_dir, workload, end, log)


def write_rows(config: Config, workload: Workload) -> None:
    """Write the requests as rows of data, and the held-out rows, which are none of them: those would be left out."""
    Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
    for file, requests in ((config.data.source, workload.requests), (config.eval.source, workload.held_out)):
        Path(str(file)).write_text("".join(json.dumps({"messages": each.messages}) + "\n" for each in requests))


def conclude_own(run_dir: Path, workload: Workload, end: ProcessEnd, log: Path) -> HeadToHeadResult:
    """Return rayqd's row, of what the run in `run_dir` has recorded of its steps."""
    timed = [(time, event) for time, event in read_timed_events(run_dir) if isinstance(event, StepEvent)]
    times = StepTimes(ends=tuple(time for time, _ in timed))
    if times.median_seconds is None:
        why = explain_failure(end, len(timed), log)
        return HeadToHeadResult(arm=workload.arm, contender=OWN, label=OWN, status="failed", why=why)
    result = read_result(run_dir / RESULT)
    startup = result.startup if result else None
    first = startup.first_step if startup and startup.first_step is not None else times.ends[0] - end.began
    counted = [event for _, event in timed[WARM_UP_STEPS:]]
    tokens = statistics.median(event.learner.num_loss_tokens for event in counted)
    return HeadToHeadResult(
        arm=workload.arm,
        contender=OWN,
        label=OWN,
        status="measured",
        why="" if end.exit_code == 0 else f"after its steps: {explain_failure(end, len(timed), log)}",
        seconds=times.median_seconds,
        step_seconds=tuple(times.seconds),
        cpu_seconds=times.median_cpu_seconds(end.cpu),
        trained_tokens=round(tokens),
        first_step_seconds=first,
        total_seconds=end.seconds,
        peak_bytes=end.peak_bytes,
        role_seconds=_role_seconds(counted),
    )


def exported_checkpoint(runs: Path) -> Path | None:
    """Return what the on-policy run has exported; None where there is nothing."""
    export = runs / "on-policy" / EXPORT
    return export if (export / "config.json").is_file() else None


def _role_seconds(events: Sequence[StepEvent]) -> dict[str, float]:
    """Return the median step's seconds of work by role, summed over its workers, and the learner's wait."""
    return {
        "rollout": statistics.median(event.roles.rollout_seconds for event in events),
        "teacher": statistics.median(event.roles.teacher_seconds for event in events),
        "learner": statistics.median(event.learner.learner_seconds for event in events),
        "waiting for the batch": statistics.median(event.learner.wait_seconds for event in events),
    }
