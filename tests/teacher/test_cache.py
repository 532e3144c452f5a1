"""Payloads on disk: the same bits back, and nothing where anything is different."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.errors import StorageError
from rayqd.model.wire import from_wire, to_wire
from rayqd.teacher.cache import PayloadCache, TeacherIdentity, weights_digest
from rayqd.teacher.payloads import HiddenSpec, LogitsSpec, PayloadSpec, SampledSpec, TopKSpec
from rayqd.types import HiddenPayload, LogitsPayload, Rollout, SampledPayload, TeacherPayload, TopKPayload

TEACHER = TeacherIdentity(weights="12ab", dtype="bfloat16")
HIDDEN = HiddenPayload(hidden=to_wire(torch.randn(7, 32).bfloat16()))
LOGITS = LogitsSpec(vocab_size=50)
TOPK = TopKSpec(k=4, of_student=False, temperature=1.0, vocab_size=50)
SAMPLED = SampledSpec(temperature=1.0, vocab_size=50)


@pytest.fixture
def cache(tmp_path: Path) -> PayloadCache:
    return PayloadCache(tmp_path / "payloads", 10**9, TEACHER)


@pytest.fixture
def rollout(make_rollouts: Any) -> Rollout:
    return make_rollouts((5, 7))[0]


@pytest.mark.parametrize(
    ("spec", "payload"),
    [
        (HiddenSpec(), HIDDEN),
        (HiddenSpec(), HiddenPayload(hidden=to_wire(torch.randn(3, 8)))),
        (LOGITS, LogitsPayload(logits=to_wire(torch.randn(3, 50).half()))),
        (
            TOPK,
            TopKPayload(
                ids=np.arange(12, dtype=np.int32).reshape(3, 4), logprobs=np.random.rand(3, 4).astype(np.float32)
            ),
        ),
        (SAMPLED, SampledPayload(logprobs=np.float32([-1.5, -np.inf, 0.0]))),
    ],
)
def test_what_comes_back_is_what_was_put(
    cache: PayloadCache, rollout: Rollout, make_rollouts: Any, spec: PayloadSpec, payload: TeacherPayload
) -> None:
    cache.put(spec, rollout, payload)
    again = PayloadCache(cache.directory, 10**9, TEACHER).get(spec, rollout)
    assert type(again) is type(payload)
    for field in fields(payload):
        before, after = getattr(payload, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            assert np.array_equal(before, after)
        else:
            assert torch.equal(from_wire(before), from_wire(after))
            assert before.dtype == after.dtype
    assert cache.get(spec, make_rollouts((5, 7), seed=1)[0]) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_entry_is_none_and_is_made_again(cache: PayloadCache, rollout: Rollout, damage: str) -> None:
    cache.put(HiddenSpec(), rollout, HIDDEN)
    file = cache.path(HiddenSpec(), rollout)
    file.write_bytes({"cut": file.read_bytes()[:-8], "empty": b"", "text": b"not at all a tensor"}[damage])
    assert cache.get(HiddenSpec(), rollout) is None
    assert not file.exists()
    cache.put(HiddenSpec(), rollout, HIDDEN)
    assert cache.get(HiddenSpec(), rollout) is not None


def test_no_bit_of_an_entry_can_flip_unseen(cache: PayloadCache, rollout: Rollout) -> None:
    cache.put(TOPK, rollout, TopKPayload(ids=np.int32([[1, 2]]), logprobs=np.float32([[-0.5, -1.5]])))
    file = cache.path(TOPK, rollout)
    content = file.read_bytes()
    for position in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        assert cache.get(TOPK, rollout) is None, position
    file.write_bytes(content)
    assert cache.get(TOPK, rollout) is not None


def test_an_entry_with_other_fields_is_none_wherever_it_lies(cache: PayloadCache, rollout: Rollout) -> None:
    cache.put(SAMPLED, rollout, SampledPayload(logprobs=np.float32([-1.5])))
    file = cache.path(HiddenSpec(), rollout)
    file.parent.mkdir(exist_ok=True)
    cache.path(SAMPLED, rollout).rename(file)
    assert cache.get(HiddenSpec(), rollout) is None
    assert not file.exists()


def test_what_an_earlier_version_left_makes_room(tmp_path: Path, rollout: Rollout) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "old.safetensors").write_bytes(bytes(1000))
    cache = PayloadCache(tmp_path, 900, TEACHER)
    cache.put(HiddenSpec(), rollout, HIDDEN)
    assert [path.name for path in (tmp_path / "ab").iterdir()] == []


def test_other_weights_have_another_digest_and_a_copy_the_same(tmp_path: Path, tiny_model: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert weights_digest(copy) == weights_digest(tiny_model)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert weights_digest(copy) != weights_digest(tiny_model)


def test_another_teacher_spec_or_text_has_another_entry(tmp_path: Path, make_rollouts: Any) -> None:
    (a,), (b,) = make_rollouts((5, 9)), make_rollouts((5, 9), seed=1)
    moved = replace(
        a, prompt_ids=np.append(a.prompt_ids, a.completion_ids[:1]), completion_ids=a.completion_ids[1:]
    )  # the same tokens, of which one more is prompt
    teachers = [TEACHER, replace(TEACHER, weights="12ac"), replace(TEACHER, dtype="float16")]
    caches = [PayloadCache(tmp_path, 10**9, teacher) for teacher in teachers]
    specs = [HiddenSpec(), LOGITS, TOPK, SAMPLED]
    paths = {cache.path(spec, rollout) for cache in caches for spec in specs for rollout in (a, b, moved)}
    assert len(paths) == 3 * 4 * 3
    (same,) = make_rollouts((5, 9))
    assert PayloadCache(tmp_path, 10**9, TeacherIdentity(weights="12ab", dtype="bfloat16")).path(TOPK, same) in paths


def test_the_least_recently_used_go_first(tmp_path: Path, make_rollouts: Any) -> None:
    payload = HiddenPayload(hidden=to_wire(torch.zeros(100, 100)))
    cache = PayloadCache(tmp_path, 10 * 40_500, TEACHER)
    rollouts = [make_rollouts((3, 100), seed=seed)[0] for seed in range(11)]
    paths = [cache.path(HiddenSpec(), rollout) for rollout in rollouts]
    for i, rollout in enumerate(rollouts[:10]):
        cache.put(HiddenSpec(), rollout, payload)
        os.utime(paths[i], (i, i))
    assert cache.get(HiddenSpec(), rollouts[0]) is not None  # used just now
    cache.put(HiddenSpec(), rollouts[10], payload)
    kept = set(tmp_path.glob("*/*"))
    assert sum(path.stat().st_size for path in kept) <= 10 * 40_500
    assert {paths[0], paths[10], paths[9]} <= kept
    assert paths[1] not in kept


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"teacher\.cache_dir=.*choose another, or set teacher\.cache_gib to 0"):
        PayloadCache(tmp_path / "file" / "payloads", 10**9, TEACHER)


def test_a_full_disk_costs_only_the_entry(
    cache: PayloadCache, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rayqd.teacher.cache.Path.write_bytes", full)
    cache.put(HiddenSpec(), rollout, HIDDEN)
    assert cache.get(HiddenSpec(), rollout) is None
    assert not list(cache.directory.glob("*/*"))
