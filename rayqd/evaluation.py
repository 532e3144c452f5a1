"""A checkpoint against its teacher on the held-out rows, in one process and without Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.evals.fidelity import Fidelity, score, student_fidelity, teacher_fidelity
from rayqd.export.load import is_export, load_export
from rayqd.learner.checkpoint import load_checkpoint
from rayqd.learner.start import StartingPoint
from rayqd.model.load import load_model, output_head
from rayqd.model.scoring import Teacher
from rayqd.model.source import local_directory
from rayqd.preflight import check, load_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate(path: Path, config: Config, console: Console | None = None) -> dict[str, Any]:
    """KL to the teacher and perplexity of the model at `path`: a run, one of its checkpoints, or any model directory.

    Prints them, and keeps them in `eval/` of the run's directory when `path` lies in one.
    """
    console = console or Console()
    checked = check(config, trains=False)
    _, heldout = load_data(checked, config)
    teacher_directory = local_directory(config.teacher.name) if config.teacher.name else checked.directory
    teacher = load_model(teacher_directory, config.model.dtype)
    rows = score(heldout.examples, Teacher(teacher, config.teacher.max_batch_tokens))
    teacher_head = output_head(teacher)
    model = _student(path, config)
    fidelity = student_fidelity(model, output_head(model), teacher_head, rows, config.learner.microbatch_tokens)
    result = {"path": str(path), "model": _fields(fidelity), "teacher": _fields(teacher_fidelity(teacher_head, rows))}
    console.print(
        f"{path}: KL to teacher {fidelity.kl_to_teacher:.4f}, perplexity {fidelity.perplexity:.3f} "
        f"(teacher {result['teacher']['perplexity']:.3f}) over {fidelity.num_tokens:,} held-out tokens",
        highlight=False,
        soft_wrap=True,
    )
    if (run_dir := _run_directory(path)) is not None:
        (run_dir / "eval").mkdir(exist_ok=True)
        (run_dir / "eval" / f"{path.resolve().name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _student(path: Path, config: Config) -> PreTrainedModel:
    if (path / "student.safetensors").is_file():
        # What counts is what would be exported, so the adapter is merged wherever it was trained.
        inside = config.adapter.model_copy(update={"placement": "inside"})
        student = StartingPoint(config.model_copy(update={"adapter": inside})).load_student(
            local_directory(config.model.name, config.model.revision)
        )
        student.load_state_dict(load_checkpoint(path)["student"])
        return student.model
    if (path / "checkpoints").is_dir() and not (path / "export").is_dir():
        raise ModelError(f"{path} has no export yet: name one of its checkpoints, {path}/checkpoints/step-...")
    directory = path / "export" if (path / "export").is_dir() else path
    if is_export(directory):
        return load_export(directory, config.model.dtype)
    return load_model(local_directory(str(directory.absolute())), config.model.dtype)


def _run_directory(path: Path) -> Path | None:
    candidates = (path.resolve(), *path.resolve().parents[:2])
    return next((place for place in candidates if (place / "config.toml").is_file()), None)


def _fields(fidelity: Fidelity) -> dict[str, Any]:
    return asdict(fidelity)
