"""Run directories as a run leaves them, without the run."""

from pathlib import Path
from typing import Any

from rayqd.config import Config
from rayqd.runs.directory import RunDirectory
from rayqd.runs.result_file import DistillResult
from tests.example_events import arm_result, eval_event, step_event


def open_run(runs_dir: Path, name: str, command: str = "distill", **sections: Any) -> RunDirectory:
    """The directory of a run of 4 steps; as long as it is open, the run is going on."""
    sections = {"learner": {"steps": 4}, "quant": {"group_size": 64}} | sections
    return RunDirectory(Config.model_validate({"name": name, "runs_dir": runs_dir, **sections}), command)


def finished_run(runs_dir: Path, name: str, kl: float, num_tokens: int = 50, **sections: Any) -> Path:
    """A run that went from KL 0.5 to `kl`."""
    run = open_run(runs_dir, name, **sections)
    run.append(eval_event("round-to-nearest INT4", 0.5), 0.0)
    for step in range(1, 5):
        run.append(step_event(step), 0.0)
    run.finish(result_of(name, kl, num_tokens))
    run.close()
    return run.path


def result_of(name: str, kl: float, num_tokens: int = 50) -> DistillResult:
    arms = {"teacher": 0.0, "round-to-nearest INT4": 0.5, "distilled INT4": kl}
    return DistillResult(
        name=name,
        rows=tuple(arm_result(arm, kl, num_tokens=num_tokens) for arm, kl in arms.items()),
        seconds={"total": 61.0},
        start_seconds={},
        num_steps=4,
        export=f"runs/{name}/export",
    )
