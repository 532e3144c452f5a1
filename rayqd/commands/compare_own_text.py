"""What `rayqd compare` measures once its runs have finished: each student along the text that it writes itself.

runs that have finished ─► is it measured already? ─► the teacher, and one student after the other, in this process
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rayqd.commands.evaluate import load_student
from rayqd.commands.evaluated_models import directory_of
from rayqd.commands.own_text import choose_writing, find_basis
from rayqd.comparison.execute import is_finished
from rayqd.comparison.jobs import Job, Jobs
from rayqd.comparison.own_text import OwnTexts, read_own_text, write_own_text
from rayqd.data.chat_settings import chat_settings
from rayqd.errors import RayqdError
from rayqd.evals.continuations import measure_own_text
from rayqd.evals.writing import Writing
from rayqd.model.load import load_model, load_tokenizer
from rayqd.model.out_of_memory import release_memory
from rayqd.model.source import student_directory, teacher_directory
from rayqd.runs.continuations import Basis, OwnText
from rayqd.sweep.shared import Data, data_key
from rayqd.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A run that has not been measured yet."""

    job: Job
    rows: Sequence[Rollout]
    writing: Writing
    basis: Basis


def measure_own_texts(jobs: Jobs, runs: Sequence[Job], data: Data, say: Callable[[str], None]) -> OwnTexts | None:
    """Return what each of the finished `runs` does along its own text, measured where it has not been.

    None without `eval.continuations`. A run that cannot be measured ends none of the others.
    """
    number = jobs.base.eval.continuations
    if not number:
        return None
    finished = [job for job in runs if is_finished(job) and not job.is_pilot]
    writing = _choose_writing(jobs)
    rows = {job.name: _rollouts(data, job, number) for job in finished}
    found = OwnTexts(
        num_prompts=min(map(len, rows.values()), default=number), max_new_tokens=jobs.base.rollout.max_new_tokens
    )
    if found.num_prompts < number:
        say(f"eval.continuations = {number}: only {found.num_prompts} rows are held out (eval.num_rows)")
    left: list[_Asked] = []
    for job in finished:
        own = replace(writing, seed=job.config.seed)
        try:
            basis = find_basis(job.config, own, rows[job.name], _directory(job))
        except RayqdError as error:
            found.errors[job.name] = str(error)
            continue
        if by_row := read_own_text(job.directory, basis):
            found.by_run[job.name] = by_row
        else:
            left.append(_Asked(job=job, rows=rows[job.name], writing=own, basis=basis))
    _measure(left, found, say)
    return found


def _measure(left: Sequence[_Asked], found: OwnTexts, say: Callable[[str], None]) -> None:
    teachers: dict[tuple[Path, str], PreTrainedModel] = {}
    for asked in left:
        job = asked.job
        key = teacher_directory(job.config), job.config.model.dtype
        try:
            if key not in teachers:
                teachers.clear()
                release_memory()
                teachers[key] = load_model(*key)
            by_row = measure_own_text(asked.rows, load_student(job.directory, job.config), teachers[key], asked.writing)
        except (RayqdError, torch.OutOfMemoryError) as error:
            found.errors[job.name] = str(error)
            say(f"{job.name}: its own text was not measured: {error}")
            continue
        write_own_text(job.directory, OwnText(by_row=by_row, basis=asked.basis))
        found.by_run[job.name] = by_row
        say(f"{job.name}: KL to teacher along its own text {sum(by_row.kl) / sum(by_row.num_tokens):.4f}")


def _choose_writing(jobs: Jobs) -> Writing:
    """Return how all students write: as long as what all share says, whatever an arm trains with."""
    directory = student_directory(jobs.base)
    tokenizer = load_tokenizer(directory)
    if template := chat_settings(jobs.base.data).template:
        tokenizer.chat_template = template
    return choose_writing(jobs.base, tokenizer, directory)


def _rollouts(data: Data, job: Job, number: int) -> list[Rollout]:
    _, heldout = data[data_key(job.config)]
    return [Rollout.from_data(each, step=-1, index=i) for i, each in enumerate(heldout.examples[:number])]


def _directory(job: Job) -> Path:
    return directory_of(job.directory, trusts_code=job.config.model.trust_remote_code)
