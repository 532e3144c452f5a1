"""Exposure bias, measured: how far the student is from the teacher along the data's completions and along its own.

Where the student writes, it reads what it wrote; if its errors led it to where the teacher never was, the divergence
would grow with the position along its own completions faster than along the data's (Bengio et al. 2015; Arora et al.
2022, "Why Exposure Bias Matters").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rayqd.evals.fidelity import METRICS, compare_tokens, mean_fidelity
from rayqd.evals.writing import Request, Writing, write
from rayqd.metrics.bootstrap import estimate, ratio
from rayqd.metrics.fidelity import ByRow
from rayqd.model.load import output_head
from rayqd.runs.continuations import Basis, Continuations, OwnText, Positions, SideBySide
from rayqd.teacher.forward import Teacher
from rayqd.types import IntArray, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Load = Callable[[], PreTrainedModel]

TEACHER, STUDENT = "teacher", "student"
_FIRST_BIN = 8  # positions; each further bin is as long as all before it
_MOST_SAMPLES = 5  # that are kept to be read


def measure_continuations(
    rows: Sequence[Rollout],
    student: PreTrainedModel,
    load_teacher: Load,
    others: Mapping[str, Load],
    decode: Callable[[Sequence[int]], str],
    writing: Writing,
    basis: Basis,
) -> Continuations:
    """Let teacher, student and `others` continue the prompts of held-out `rows`, each prompt alone.

    Student and teacher are in memory together; `others` are loaded one after the other. `basis` is kept with the sums.
    """
    likeliest = [Request(prompt_ids=row.prompt_ids) for row in rows]
    written = write(student, [*likeliest, *sampled_requests(rows, writing)], writing)
    greedy = {STUDENT: written[: len(rows)]}
    own = _continue(rows, written[len(rows) :])
    model = load_teacher()
    greedy[TEACHER] = write(model, likeliest, writing)
    along = [_compare(student, model, some, writing.max_tokens) for some in (rows, own)]
    del model
    for name, load in others.items():
        greedy[name] = write(load(), likeliest[:_MOST_SAMPLES], writing)
    agreed = [_common(a, b) for a, b in zip(greedy[TEACHER], greedy[STUDENT], strict=True)]
    pairs = zip(greedy[TEACHER], greedy[STUDENT], strict=True)
    order = [TEACHER, *others, STUDENT]
    return Continuations(
        data=tuple(by_position(along[0])),
        own=tuple(by_position(along[1])),
        own_text=OwnText(by_row=sums_by_row(along[1]), basis=basis),
        agreed=tuple(agreed),
        num_whole=sum(np.array_equal(a, b) for a, b in pairs),
        max_new_tokens=writing.max_new_tokens,
        samples=tuple(
            SideBySide(
                prompt=decode(row.prompt_ids.tolist()),
                texts={name: decode(greedy[name][i].tolist()) for name in order},
                agreed=agreed[i],
            )
            for i, row in enumerate(rows[:_MOST_SAMPLES])
        ),
    )


def measure_own_text(
    rows: Sequence[Rollout], student: PreTrainedModel, teacher: PreTrainedModel, writing: Writing
) -> ByRow:
    """Let the student alone go on from the prompts of `rows`, and return its sums along what it wrote."""
    own = _continue(rows, write(student, sampled_requests(rows, writing), writing))
    return sums_by_row(_compare(student, teacher, own, writing.max_tokens))


def sums_by_row(rows: Sequence[Tensor]) -> ByRow:
    """Sum up what `compare_tokens` returns of each row, [C, 4]."""
    found = mean_fidelity(rows).by_row
    assert found is not None
    return found


def sampled_requests(rows: Sequence[Rollout], writing: Writing) -> list[Request]:
    """Return what the student is asked for: to go on from each row's prompt, with a seed of the row's own."""
    return [Request(prompt_ids=row.prompt_ids, seed=(writing.seed, i)) for i, row in enumerate(rows)]


def by_position(rows: Sequence[Tensor]) -> Iterator[Positions]:
    """Yield the means, over positions that lie together, of what `compare_tokens` returns of each row, [C, 4]."""
    kl, agrees = METRICS.index("kl"), METRICS.index("agrees")
    first, last = 0, _FIRST_BIN - 1
    while parts := [row[first : last + 1] for row in rows if len(row) > first]:
        numbers = [len(part) for part in parts]
        sums = torch.stack([part.sum(0) for part in parts])
        yield Positions(
            first=first,
            last=min(last, max(len(row) for row in rows) - 1),
            num_rows=len(parts),
            num_tokens=sum(numbers),
            kl=estimate(ratio, sums[:, kl].tolist(), numbers),
            top1_agreement=estimate(ratio, sums[:, agrees].tolist(), numbers),
        )
        first, last = last + 1, 2 * last + 1


def _continue(rows: Sequence[Rollout], written: Sequence[IntArray]) -> list[Rollout]:
    return [
        replace(row, completion_ids=ids, trained=None, on_policy=True) for row, ids in zip(rows, written, strict=True)
    ]


def _compare(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: Sequence[Rollout], max_tokens: int
) -> list[Tensor]:
    payloads = Teacher(teacher, max_tokens).hidden(rows)
    scored = [ScoredRollout(rollout=row, payload=payload) for row, payload in zip(rows, payloads, strict=True)]
    return compare_tokens(student, output_head(student), output_head(teacher), scored, max_tokens)


def _common(one: IntArray, other: IntArray) -> int:
    """Return how many tokens both begin with."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
