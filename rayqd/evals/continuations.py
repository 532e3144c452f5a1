"""Exposure bias, measured: how far the student is from the teacher along the data's completions and along its own.

Where the student writes, it reads what it wrote; if its errors led it to where the teacher never was, the divergence
would grow with the position along its own completions faster than along the data's (Bengio et al. 2015; Arora et al.
2022, "Why Exposure Bias Matters").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rayqd.evals.fidelity import METRICS, compare_tokens
from rayqd.evals.language_model import own_attention
from rayqd.metrics.bootstrap import estimate, ratio
from rayqd.model.load import output_head
from rayqd.runs.continuations import Continuations, Positions, SideBySide
from rayqd.teacher.forward import Teacher
from rayqd.types import IntArray, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Load = Callable[[], PreTrainedModel]

TEACHER, STUDENT = "teacher", "student"
_FIRST_BIN = 8  # positions; each further bin is as long as all before it
_MOST_SAMPLES = 5  # that are kept to be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How completions are written."""

    ends: Sequence[int]  # ids that end one
    max_new_tokens: int
    seed: int
    max_tokens: int  # that go through a model at once where it only reads


def measure_continuations(
    rows: Sequence[Rollout],
    student: PreTrainedModel,
    load_teacher: Load,
    others: Mapping[str, Load],
    decode: Callable[[Sequence[int]], str],
    writing: Writing,
) -> Continuations:
    """Let teacher, student and `others` continue the prompts of held-out `rows`, each prompt alone.

    Student and teacher are in memory together; `others` are loaded one after the other.
    """
    prompts = [row.prompt_ids for row in rows]
    greedy = {STUDENT: [write(student, prompt, writing) for prompt in prompts]}
    sampled = [write(student, p, writing, seed=writing.seed + i) for i, p in enumerate(prompts)]
    own = [_continue(row, ids) for row, ids in zip(rows, sampled, strict=True) if len(ids)]
    model = load_teacher()
    greedy[TEACHER] = [write(model, prompt, writing) for prompt in prompts]
    along = [_compare(student, model, some, writing.max_tokens) for some in (rows, own)]
    del model
    for name, load in others.items():
        model = load()
        greedy[name] = [write(model, prompt, writing) for prompt in prompts[:_MOST_SAMPLES]]
    agreed = [_common(a, b) for a, b in zip(greedy[TEACHER], greedy[STUDENT], strict=True)]
    pairs = zip(greedy[TEACHER], greedy[STUDENT], strict=True)
    order = [TEACHER, *others, STUDENT]
    return Continuations(
        data=tuple(by_position(along[0])),
        own=tuple(by_position(along[1])),
        agreed=tuple(agreed),
        num_whole=sum(np.array_equal(a, b) for a, b in pairs),
        max_new_tokens=writing.max_new_tokens,
        samples=tuple(
            SideBySide(
                prompt=decode(prompt.tolist()),
                texts={name: decode(greedy[name][i].tolist()) for name in order},
                agreed=agreed[i],
            )
            for i, prompt in enumerate(prompts[:_MOST_SAMPLES])
        ),
    )


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


@torch.no_grad()
def write(model: PreTrainedModel, prompt_ids: IntArray, writing: Writing, seed: int | None = None) -> IntArray:
    """Return the completion, [C]: by always the likeliest token, or with a `seed` sampled at temperature 1."""
    from transformers import GenerationConfig

    ids = torch.from_numpy(prompt_ids.astype(np.int64))[None].to(model.device)
    settings = GenerationConfig(
        max_new_tokens=writing.max_new_tokens,
        do_sample=seed is not None,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        eos_token_id=list(writing.ends),
        pad_token_id=writing.ends[0] if writing.ends else 0,
    )
    if seed is not None:
        torch.manual_seed(seed)
    with own_attention(model):
        generate: Any = model.generate
        written = generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return written[0, ids.shape[1] :].cpu().numpy().astype(np.int32)


def _continue(row: Rollout, ids: IntArray) -> Rollout:
    return replace(row, completion_ids=ids, trained=None, on_policy=True)


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
