"""Where a student goes on by itself: held against transformers' own computation of each text alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from rayqd.evals.continuations import by_position, measure_continuations, measure_own_text, sampled_requests
from rayqd.evals.writing import Request, Writing, draw, most_tokens, write
from rayqd.model.load import load_model
from rayqd.runs.continuations import Basis, continuations_file, read_continuations, write_continuations
from tests.evals.plain_writing import agree_at, eager, greedy, kl_at, moved, sampled

WRITING = Writing(ends=(2,), max_new_tokens=12, seed=3, max_tokens=64)
BASIS = Basis(prompts="p", model="m", teacher="t", dtype="float32", ends=(2,), max_new_tokens=12, seed=3, rayqd="0")


@pytest.mark.slow
def test_numbers_are_those_of_each_text_alone(tiny_model: Path, make_rollouts: Any, tmp_path: Path) -> None:
    rows = make_rollouts((5, 30), (9, 4), (3, 17), seed=4)
    student, teacher = moved(tiny_model), load_model(tiny_model, "float32")
    plain_student, plain_teacher = eager(tiny_model, student), eager(tiny_model, teacher)

    def load() -> Any:
        return load_model(tiny_model, "float32")

    found = measure_continuations(rows, student, load, {"rounded": load}, lambda ids: f"{list(ids)}", WRITING, BASIS)

    paths = [(greedy(plain_teacher, r.prompt_ids, WRITING), greedy(plain_student, r.prompt_ids, WRITING)) for r in rows]
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

    own = [np.array(sampled(plain_student, r.prompt_ids, (WRITING.seed, i), WRITING)) for i, r in enumerate(rows)]
    of_own = [kl_at(plain_teacher, plain_student, r.prompt_ids, ids) for r, ids in zip(rows, own, strict=True)]
    assert sum(p.num_tokens for p in found.own) == sum(map(len, own))
    assert found.own[0].kl.value == pytest.approx(np.mean([kl for row in of_own for kl in row[:8]]), rel=1e-4)
    assert found.own_text is not None
    assert found.own_text.basis == BASIS
    by_row = found.own_text.by_row
    assert list(by_row.num_tokens) == [len(ids) for ids in own]
    assert by_row.kl == pytest.approx([sum(row) for row in of_own], rel=1e-4)
    agrees = [agree_at(plain_teacher, plain_student, r.prompt_ids, ids) for r, ids in zip(rows, own, strict=True)]
    assert list(by_row.agrees) == agrees
    assert measure_own_text(rows, student, load(), WRITING) == by_row

    write_continuations(continuations_file(tmp_path, "export"), found)
    assert read_continuations(tmp_path) == found


def test_a_draw_is_the_distribution_itself() -> None:
    """Over evenly spread numbers each id's share is its probability, to a number more or less."""
    p = np.array([0.0, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0])
    with np.errstate(divide="ignore"):
        logits = torch.from_numpy(np.log(p))[None].expand(1000, -1)
    numbers = torch.arange(1000, dtype=torch.float64) / 1000
    counts = np.bincount(draw(logits, numbers).numpy(), minlength=len(p))
    assert np.all(np.abs(counts - 1000 * p) <= 1)
    assert not counts[p == 0].any()
    assert draw(logits[:1], torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item() == 5


@pytest.mark.slow
def test_what_a_row_gets_does_not_depend_on_who_shares_its_call(
    tiny_model: Path, make_rollouts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rollouts((5, 1), (9, 1), (3, 1), (9, 1), seed=4)
    student = moved(tiny_model)
    requests = [*sampled_requests(rows, WRITING), *(Request(prompt_ids=row.prompt_ids) for row in rows)]
    together = write(student, requests, WRITING)
    calls: list[int] = []
    generate = student.generate

    def counted(ids: Any, **settings: Any) -> Any:
        calls.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError
        return generate(ids, **settings)

    monkeypatch.setattr(student, "generate", counted)
    in_parts = write(student, requests, WRITING)
    assert max(calls[1:]) > 1
    assert len(calls) > 4  # the first ones ended without memory
    assert [each.tolist() for each in in_parts] == [each.tolist() for each in together]
    assert all(row.tolist().index(2) == len(row) - 1 for row in together if 2 in row)
    assert len({tuple(row.tolist()) for row in together}) > 4


@pytest.mark.slow
def test_what_is_written_is_the_models_own_distribution_and_what_both_models_can_read(
    tiny_model: Path, make_rollouts: Any
) -> None:
    """Whatever its generation_config says; no id and no position that one of two models lacks."""
    from transformers import GenerationConfig

    rows = make_rollouts((5, 1), (9, 1), (3, 1), (8, 1), seed=4)
    student = moved(tiny_model)
    requests = [*sampled_requests(rows, WRITING), *(Request(prompt_ids=row.prompt_ids) for row in rows)]
    plain = write(student, requests, WRITING)
    longest = max(max(each.tolist()) for each in plain)
    student.generation_config = GenerationConfig(
        no_repeat_ngram_size=1, suppress_tokens=[int(plain[0][0])], min_new_tokens=12, return_dict_in_generate=True
    )
    before = student.generation_config
    assert [each.tolist() for each in write(student, requests, WRITING)] == [each.tolist() for each in plain]
    assert student.generation_config is before

    short = write(student, requests, replace(WRITING, context_length=12))
    rooms = [min(12, 12 - len(request.prompt_ids)) for request in requests]
    assert [each.tolist() for each in short] == [each[:room].tolist() for each, room in zip(plain, rooms, strict=True)]
    fewer = write(student, requests, replace(WRITING, num_ids=longest))
    assert max(max(each.tolist()) for each in fewer) < longest


def test_a_cpu_is_not_asked_for_all_that_its_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit is not in what the host has free, and what goes beyond it is killed without a word."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    host = psutil.virtual_memory()._replace(available=1 << 50)
    monkeypatch.setattr("psutil.virtual_memory", lambda: host)
    keys_and_values = 2 * 2 * 16 * 4 * most_tokens(LlamaForCausalLM(config))
    assert keys_and_values <= 4 << 30


def test_positions_double_and_end_with_the_longest_row() -> None:
    rows = [torch.zeros(n, 4, dtype=torch.float64) for n in (40, 3)]
    assert [(p.first, p.last, p.num_tokens) for p in by_position(rows)] == [
        (0, 7, 11), (8, 15, 8), (16, 31, 16), (32, 39, 8),
    ]  # fmt: skip
    assert list(by_position([])) == []
