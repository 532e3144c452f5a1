"""The teacher worker: what it remembers, what it asks, and what it says it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.errors import StorageError
from rayqd.model.load import load_model
from rayqd.model.wire import to_wire
from rayqd.teacher.cache import PayloadCache, TeacherIdentity
from rayqd.teacher.forward import Teacher
from rayqd.teacher.payloads import HiddenSpec, SampledSpec, payload_spec
from rayqd.teacher.worker import LoadedTeacher, TeacherWorker, teacher_loader
from rayqd.types import HiddenPayload, Rollout, SampledPayload, TeacherPayload


def cache(directory: Path) -> PayloadCache:
    return PayloadCache(directory, 10**9, TeacherIdentity(weights="12ab", dtype="float32"))


class CountingScorer:
    """Sends the length of each completion, and nothing of those of length 13."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        self.asked += [r.num_tokens for r in rollouts]
        lengths = [r.num_loss_tokens for r in rollouts]
        return [None if n == 13 else SampledPayload(logprobs=np.full(n, n, np.float32)) for n in lengths]

    def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]:
        self.asked += [r.num_tokens for r in rollouts]
        return [HiddenPayload(hidden=to_wire(torch.full((r.num_loss_tokens, 2), r.num_loss_tokens))) for r in rollouts]


def worker(scorer: CountingScorer, cache: PayloadCache | None) -> TeacherWorker:
    loaded = LoadedTeacher(scorer=scorer, spec=SampledSpec(temperature=1.0, vocab_size=128), cache=cache)
    return TeacherWorker(0, lambda: loaded)


def test_a_text_of_the_data_is_read_once_and_what_the_student_wrote_every_time(
    tmp_path: Path, make_rollouts: Any
) -> None:
    a, b, c = make_rollouts((5, 9), (7, 3), (8, 4))
    written = replace(c, on_policy=True, policy_version=1)
    scorer = CountingScorer()
    first, _ = worker(scorer, cache(tmp_path)).score(a, written, b)
    assert (first.num_cache_hits, first.num_cache_misses, first.num_tokens) == (0, 2, 14 + 10 + 12)

    again, payloads = worker(scorer, cache(tmp_path)).score(a, written, b)  # as after a restart
    assert (again.num_cache_hits, again.num_cache_misses, again.num_tokens) == (2, 0, 12)
    assert scorer.asked == [12, 14, 10, 12]
    assert [p.logprobs[0] for p in payloads] == [9, 4, 3]

    exact, _ = worker(scorer, cache(tmp_path)).hidden(a)
    assert exact.num_cache_misses == 1  # another payload is another entry


def test_without_a_cache_nothing_is_counted(make_rollouts: Any) -> None:
    report, _ = worker(CountingScorer(), None).score(*make_rollouts((5, 9), (7, 3)))
    assert (report.num_cache_hits, report.num_cache_misses, report.num_tokens) == (0, 0, 24)


def test_sequences_without_numbers_are_named_and_never_remembered(tmp_path: Path, make_rollouts: Any) -> None:
    scorer = CountingScorer()
    for _ in range(2):
        report, payloads = worker(scorer, cache(tmp_path)).score(*make_rollouts((5, 9), (7, 13), (8, 4)))
        assert report.quarantined == (1,)
        assert payloads[1] is None
    assert scorer.asked == [14, 20, 12, 20]


@pytest.mark.parametrize("payload", ["hidden", "logits", "topk", "sampled"])
def test_a_model_that_overflows_has_no_numbers(
    tiny_model: Path, tiny_config: Any, make_rollouts: Any, payload: str
) -> None:
    model = load_model(tiny_model, "float32")
    model.model.embed_tokens.weight.data[77] = float("nan")
    good, bad = make_rollouts((5, 9), (4, 6))
    for rollout in (good, bad):
        rollout.prompt_ids[:] = rollout.prompt_ids % 70
        rollout.completion_ids[:] = rollout.completion_ids % 70
    bad.prompt_ids[2] = 77
    head = model.lm_head.weight.data.clone()
    head[77] = 0
    model.lm_head.weight = torch.nn.Parameter(head)
    config = tiny_config(teacher={"payload": payload, "top_k": 4}, distill={"lmbda": 1.0, "beta": 1.0})
    payloads = Teacher(model, 8192, payload_spec(config, 128)).score([good, bad])
    assert payloads[0] is not None
    assert payloads[1] is None


def test_the_real_teacher_keeps_each_payload_apart_and_hidden_states_once(
    tiny_config: Any, tmp_path: Path, make_rollouts: Any
) -> None:
    (rollout,) = make_rollouts((5, 9))
    settings = [{}, {"payload": "topk"}, {"payload": "topk", "top_k": 3}, {"payload": "logits"}]
    loaded = [teacher_loader(tiny_config(teacher=teacher))() for teacher in settings]
    assert len({teacher.cache.path(teacher.spec, rollout) for teacher in loaded}) == 4
    assert len({teacher.cache.path(HiddenSpec(), rollout) for teacher in loaded}) == 1
    assert loaded[0].spec == HiddenSpec()
    assert loaded[0].cache.directory == tmp_path / "runs" / ".teacher-scores"
    in_float32 = teacher_loader(tiny_config(model={"dtype": "float32"}))()
    assert in_float32.cache.path(HiddenSpec(), rollout) != loaded[0].cache.path(HiddenSpec(), rollout)


def test_only_a_directory_that_was_asked_for_must_be_writable(tiny_config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    impossible = tmp_path / "file" / "scores"
    with pytest.raises(StorageError, match="cannot be written to"):
        teacher_loader(tiny_config(teacher={"cache_dir": impossible}))()
    assert teacher_loader(tiny_config(runs_dir=impossible))().cache is None
    assert teacher_loader(tiny_config(teacher={"cache_gib": 0}))().cache is None
