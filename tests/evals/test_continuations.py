"""Where a student goes on by itself: held against transformers' own computation of each text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.evals.continuations import Writing, by_position, measure_continuations, write
from rayqd.model.load import load_model
from rayqd.runs.continuations import continuations_file, read_continuations, write_continuations

WRITING = Writing(ends=(2,), max_new_tokens=12, seed=3, max_tokens=64)


def moved(directory: Path) -> Any:
    """A student: the teacher with other weights."""
    model = load_model(directory, "float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def eager(directory: Path, model: Any) -> Any:
    from transformers import AutoModelForCausalLM

    copy = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    copy.load_state_dict(model.state_dict())
    return copy


@torch.no_grad()
def greedy(model: Any, prompt: Any) -> list[int]:
    """The likeliest token after the whole text, again and again, without a cache."""
    ids = prompt.tolist()
    for _ in range(WRITING.max_new_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in WRITING.ends:
            break
    return ids[len(prompt) :]


@torch.no_grad()
def kl_at(teacher: Any, student: Any, prompt: Any, completion: Any) -> list[float]:
    ids = torch.tensor([[*prompt.tolist(), *completion.tolist()]])
    q, p = (m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (teacher, student))
    return (q.exp() * (q - p)).sum(-1).tolist()


@pytest.mark.slow
def test_numbers_are_those_of_each_text_alone(tiny_model: Path, make_rollouts: Any, tmp_path: Path) -> None:
    rows = make_rollouts((5, 30), (9, 4), (3, 17), seed=4)
    student, teacher = moved(tiny_model), load_model(tiny_model, "float32")
    plain_student, plain_teacher = eager(tiny_model, student), eager(tiny_model, teacher)

    def load() -> Any:
        return load_model(tiny_model, "float32")

    found = measure_continuations(rows, student, load, {"rounded": load}, lambda ids: f"{list(ids)}", WRITING)

    paths = [(greedy(plain_teacher, r.prompt_ids), greedy(plain_student, r.prompt_ids)) for r in rows]
    for (one, other), agreed in zip(paths, found.agreed, strict=True):
        assert one[:agreed] == other[:agreed]
        assert agreed == min(len(one), len(other)) or one[agreed] != other[agreed]
    assert found.num_whole == sum(a == b for a, b in paths)
    assert found.samples[1].texts["teacher"] == f"{paths[1][0]}"
    assert found.samples[1].texts["rounded"] == f"{paths[1][0]}"  # here it is the teacher itself
    assert found.samples[1].texts["student"] == f"{paths[1][1]}"

    of_data = [kl_at(plain_teacher, plain_student, r.prompt_ids, r.completion_ids) for r in rows]
    assert [(p.first, p.last, p.num_rows) for p in found.data] == [(0, 7, 3), (8, 15, 2), (16, 29, 2)]
    for place in found.data:
        values = [kl for row in of_data for kl in row[place.first : place.last + 1]]
        assert place.num_tokens == len(values)
        assert place.kl.value == pytest.approx(np.mean(values), rel=1e-4)

    own = [write(student, r.prompt_ids, WRITING, seed=WRITING.seed + i) for i, r in enumerate(rows)]
    of_own = [kl_at(plain_teacher, plain_student, r.prompt_ids, ids) for r, ids in zip(rows, own, strict=True)]
    assert sum(p.num_tokens for p in found.own) == sum(map(len, own))
    assert found.own[0].kl.value == pytest.approx(np.mean([kl for row in of_own for kl in row[:8]]), rel=1e-4)

    write_continuations(continuations_file(tmp_path, "export"), found)
    assert read_continuations(tmp_path) == found


@pytest.mark.slow
def test_sampling_is_the_models_own_distribution(tiny_model: Path) -> None:
    """First tokens of 400 seeds: each id's share is within five standard errors of its probability."""
    student = moved(tiny_model)
    prompt = np.asarray([7, 9, 11], dtype=np.int32)
    one = Writing(ends=(2,), max_new_tokens=1, seed=0, max_tokens=64)
    counts = np.bincount([int(write(student, prompt, one, seed=i)[0]) for i in range(400)])
    with torch.no_grad():
        plain = eager(tiny_model, student)
        p = plain(torch.tensor([prompt.tolist()])).logits[0, -1].double().softmax(-1).numpy()
    share = np.zeros_like(p)
    share[: len(counts)] = counts / 400
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / 400) + 1 / 400)


def test_positions_double_and_end_with_the_longest_row() -> None:
    rows = [torch.zeros(n, 4, dtype=torch.float64) for n in (40, 3)]
    assert [(p.first, p.last, p.num_tokens) for p in by_position(rows)] == [
        (0, 7, 11), (8, 15, 8), (16, 31, 16), (32, 39, 8),
    ]  # fmt: skip
    assert list(by_position([])) == []
