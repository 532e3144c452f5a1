"""What `rayqd compare` measures once its runs have finished: each student along the text that it writes itself.

runs that have finished ─► is it measured already? ─► the teacher, and one student after the other, in this process
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rayqd.commands.compare_models import find_arm_model
from rayqd.commands.evaluate import load_student
from rayqd.commands.evaluated_models import directory_of
from rayqd.commands.own_text import choose_writing, digest_weights, find_basis
from rayqd.comparison.execute import is_finished
from rayqd.comparison.jobs import Job, Jobs
from rayqd.comparison.own_text import OwnTexts, read_own_text, write_own_text
from rayqd.data.chat_settings import chat_settings
from rayqd.errors import RayqdError
from rayqd.evals.continuations import measure_own_text
from rayqd.evals.writing import Writing
from rayqd.model.load import device, load_model, load_tokenizer
from rayqd.model.out_of_memory import release_memory
from rayqd.model.source import student_directory, teacher_directory
from rayqd.runs.continuations import Basis, OwnText
from rayqd.sweep.shared import Data, data_key
from rayqd.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAX_ERROR_CHARACTERS = 300
# Of torch where memory or a kernel is missing, of transformers, of a model's own code, of a disk.
_FAULTS = (RayqdError, OSError, RuntimeError, ValueError, TypeError, LookupError, MemoryError)


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
    digest_of = cache(digest_weights)  # the teacher's files are read once
    for job in finished:
        own = replace(writing, seed=job.config.seed)
        try:
            basis = find_basis(job.config, own, rows[job.name], _directory(job), digest_of)
        except (RayqdError, OSError) as error:
            found.errors[job.name] = _explain(error)
            continue
        if by_row := read_own_text(job.directory, basis):
            found.by_run[job.name] = by_row
        else:
            left.append(_Asked(job=job, rows=rows[job.name], writing=own, basis=basis))
    if left:
        one = len(left) == 1
        say(f"own text of {len(left)} run{'' if one else 's'}: {'it is' if one else 'they are'} measured on {_place()}")
    _measure(left, found, say)
    return found


def _measure(left: Sequence[_Asked], found: OwnTexts, say: Callable[[str], None]) -> None:
    teachers: dict[tuple[Path, str], PreTrainedModel] = {}
    for asked in left:
        job = asked.job
        release_memory()  # of the student before
        try:
            key = teacher_directory(job.config), job.config.model.dtype
            if key not in teachers:
                teachers.clear()
                release_memory()
                teachers[key] = load_model(*key)
            by_row = measure_own_text(asked.rows, _load_student(job), teachers[key], asked.writing)
            write_own_text(job.directory, OwnText(by_row=by_row, basis=asked.basis))
        except _FAULTS as error:
            found.errors[job.name] = _explain(error)
            say(f"{job.name}: its own text was not measured: {found.errors[job.name]}")
            continue
        found.by_run[job.name] = by_row
        say(f"{job.name}: KL to teacher along its own text {sum(by_row.kl) / sum(by_row.num_tokens):.4f}")


def _load_student(job: Job) -> PreTrainedModel:
    return load_student(find_arm_model(job) or job.directory, job.config)


def _explain(error: BaseException) -> str:
    """Return the error in one line; of one that is not rayqd's also what it is."""
    words = textwrap.shorten(" ".join(str(error).split()), _MAX_ERROR_CHARACTERS, placeholder=" ...")
    return words if isinstance(error, RayqdError) else f"{type(error).__name__}: {words}"


def _place() -> str:
    return "a GPU" if device().type == "cuda" else "the CPU"


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
    if directory := find_arm_model(job):
        return directory
    return directory_of(job.directory, trusts_code=job.config.model.trust_remote_code)
