"""Scores on disk: the same bits back, and nothing where anything is different."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.errors import StorageError
from rayqd.model.wire import from_wire, to_wire
from rayqd.teacher.cache import ScoreCache, score_key, weights_digest
from rayqd.types import HiddenPayload, LogitsPayload, SampledPayload, TeacherPayload, TopKPayload

HIDDEN = HiddenPayload(hidden=to_wire(torch.randn(7, 32).bfloat16()))


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "scores", 10**9)


@pytest.mark.parametrize(
    "scores",
    [
        HIDDEN,
        HiddenPayload(hidden=to_wire(torch.randn(3, 8))),
        LogitsPayload(logits=to_wire(torch.randn(3, 50).half())),
        TopKPayload(ids=np.arange(12, dtype=np.int32).reshape(3, 4), logprobs=np.random.rand(3, 4).astype(np.float32)),
        SampledPayload(logprobs=np.float32([-1.5, -np.inf, 0.0])),
    ],
)
def test_what_comes_back_is_what_was_put(tmp_path: Path, cache: ScoreCache, scores: TeacherPayload) -> None:
    cache.put("ab12", scores)
    again = ScoreCache(cache.directory, 10**9).get("ab12")
    assert type(again) is type(scores)
    for name in scores.__dataclass_fields__:
        before, after = getattr(scores, name), getattr(again, name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            assert np.array_equal(before, after)
        else:
            assert torch.equal(from_wire(before), from_wire(after))
            assert before.dtype == after.dtype
    assert cache.get("ab13") is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_entry_is_none_and_is_made_again(cache: ScoreCache, damage: str) -> None:
    cache.put("ab12", HIDDEN)
    (file,) = cache.directory.glob("*/*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x10
    file.write_bytes({"cut": content[:-8], "flip": content, "empty": b"", "text": b"not at all a tensor"}[damage])
    assert cache.get("ab12") is None
    assert not file.exists()
    cache.put("ab12", HIDDEN)
    assert cache.get("ab12") is not None


def test_another_teacher_form_or_text_has_another_key(tmp_path: Path, tiny_model: Path, make_rollouts: Any) -> None:
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

    (a,), (b,) = make_rollouts((5, 9)), make_rollouts((5, 9), seed=1)
    (moved,) = make_rollouts((6, 8))
    moved = type(a)(
        step=0, index=0, on_policy=False, policy_version=None,
        prompt_ids=np.append(a.prompt_ids, a.completion_ids[:1]), completion_ids=a.completion_ids[1:],
    )  # fmt: skip
    keys = {score_key("one hidden", a), score_key("two hidden", a), score_key("one hidden", b)}
    assert len(keys | {score_key("one hidden", moved)}) == 4
    (same,) = make_rollouts((5, 9))
    assert score_key("one hidden", same) in keys


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    scores = HiddenPayload(hidden=to_wire(torch.zeros(100, 100)))
    cache = ScoreCache(tmp_path, 10 * 40_500)
    for i in range(10):
        cache.put(f"{i:02}xx", scores)
        (file,) = (tmp_path / f"{i:02}").iterdir()
        os.utime(file, (i, i))
    assert cache.get("00xx") is not None  # used just now
    cache.put("10xx", scores)
    kept = {path.name for path in tmp_path.glob("*/*")}
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 10 * 40_500
    assert {"00xx.safetensors", "10xx.safetensors", "09xx.safetensors"} <= kept
    assert "01xx.safetensors" not in kept


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"teacher\.cache_dir=.*choose another, or set teacher\.cache_gib to 0"):
        ScoreCache(tmp_path / "file" / "scores", 10**9)


def test_a_full_disk_costs_only_the_entry(cache: ScoreCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rayqd.teacher.cache.save_file", full)
    cache.put("ab12", HIDDEN)
    assert cache.get("ab12") is None
    assert not list(cache.directory.glob("*/*"))
