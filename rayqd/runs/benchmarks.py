"""What `rayqd eval` measured on benchmarks: for each metric of each task and group, every model's score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from pydantic import JsonValue

from rayqd.files import replace_file
from rayqd.runs.paths import EVALS, EXPORT


class BenchmarkScore(TypedDict):
    """One model's score; all but the teacher's have the difference to the teacher's."""

    value: float
    stderr: float | None  # of this model alone; None where lm-eval has none
    difference: NotRequired[float]  # model - teacher
    difference_stderr: NotRequired[float | None]  # paired, over the same documents
    num_answers: NotRequired[int]  # that it wrote in its own words on the whole benchmark
    num_cut: NotRequired[int]  # of those, that the limit of tokens ended; they are scored as they stand
    verdict: NotRequired[str | None]  # same, within noise, better or worse; None without an error to judge by


class BenchmarkRow(TypedDict):
    """One metric of a task or a group."""

    benchmark: str  # as eval.tasks names it
    task: str
    metric: str
    filter: str  # how the answer is read from what was generated; "none" where there is no choice
    arms: dict[str, BenchmarkScore]  # by model: teacher, the untrained arms, student
    num_documents: int
    higher_is_better: bool
    tasks: NotRequired[int]  # of a group: how many it has
    part_of: NotRequired[str | None]  # of a task: the group whose row stands for it


class BenchmarkItems(TypedDict):
    """What a model scored on each document, for one metric of a task; a line of `NAME-items.jsonl`."""

    model: str
    benchmark: str  # as eval.tasks names it
    fingerprint: str  # of documents, prompts and settings: only items of the same one compare
    task: str
    metric: str
    filter: str
    document_ids: list[int]
    values: list[float]  # lists of numbers where the metric is no mean


def items_file(run_dir: Path, name: str) -> Path:
    """Return where the items of the model called `name`, and of those measured beside it, are kept."""
    return run_dir / EVALS / f"{name}-items.jsonl"


def training_name(step: int) -> str:
    """Return the name of the student after `step` steps as training measures it; `rayqd eval` has another name."""
    return f"training-step-{step:06d}"


def write_items(run_dir: Path, name: str, items: Sequence[Mapping[str, JsonValue]]) -> str | None:
    """Keep the items of the model called `name`; return a line for the user where they cannot be written."""
    file = items_file(run_dir, name)
    try:
        file.parent.mkdir(exist_ok=True)
        with replace_file(file) as partial:
            partial.write_text("".join(json.dumps(each) + "\n" for each in items), encoding="utf-8")
    except OSError as error:
        return f"{file} cannot be written ({error.strerror}); the run goes on"
    return None


def benchmarks_file(run_dir: Path, name: str) -> Path:
    """Return where the benchmarks of the model called `name` are kept."""
    return run_dir / EVALS / f"{name}-benchmarks.json"


def read_benchmarks(run_dir: Path) -> list[BenchmarkRow]:
    """Return the rows of the run's export, measured last, under the run's name or its own; none where it was not."""
    files = [file for name in (run_dir.name, EXPORT) if (file := benchmarks_file(run_dir, name)).exists()]
    if not files:
        return []
    return json.loads(max(files, key=lambda file: file.stat().st_mtime).read_text())["rows"]
