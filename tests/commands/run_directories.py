"""Run directories as a run leaves them, without the run."""

from pathlib import Path
from typing import Any

from rayqd.config import Config
from rayqd.runs.directory import RunDirectory


def open_run(runs_dir: Path, name: str, command: str = "distill", **sections: Any) -> RunDirectory:
    """The directory of a run of 4 steps; as long as it is open, the run is going on."""
    sections = {"learner": {"steps": 4}, "quant": {"group_size": 64}} | sections
    return RunDirectory(Config.model_validate({"name": name, "runs_dir": runs_dir, **sections}), command)


def finished_run(runs_dir: Path, name: str, kl: float, num_tokens: int = 50, **sections: Any) -> Path:
    """A run that went from KL 0.5 to `kl`."""
    run = open_run(runs_dir, name, **sections)
    run.append(eval_row("round-to-nearest INT4", 0.5))
    for step in range(1, 5):
        run.append(step_row(step))
    run.finish(result_of(name, kl, num_tokens))
    run.close()
    return run.path


def eval_row(arm: str, kl: float, step: int = 0) -> dict[str, Any]:
    return {"event": "eval", "step": step, "arm": arm, **_fidelity(kl, num_tokens=50)}


def step_row(step: int) -> dict[str, Any]:
    """A step of ten seconds."""
    return {
        "event": "step", "step": step, "loss": 1 / step, "staleness": 0, "num_retries": 0, "wait_seconds": 4.0,
        "learner_seconds": 6.0, "learner_tokens_per_second": 180.0,
    }  # fmt: skip


def result_of(name: str, kl: float, num_tokens: int = 50) -> dict[str, Any]:
    arms = {"teacher": 0.0, "round-to-nearest INT4": 0.5, "distilled INT4": kl}
    rows = [
        {"arm": arm, **_fidelity(value, num_tokens), "bits_per_weight": 4.25, "size_bytes": 1_000_000}
        for arm, value in arms.items()
    ]
    return {"name": name, "rows": rows, "seconds": {"total": 61.0}, "num_steps": 4, "export": f"runs/{name}/export"}


def _fidelity(kl: float, num_tokens: int) -> dict[str, Any]:
    return {
        "kl_to_teacher": kl, "total_variation": kl / 2, "top1_agreement": 1 - kl, "perplexity": 10 + kl,
        "num_tokens": num_tokens,
    }  # fmt: skip
