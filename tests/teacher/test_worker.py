"""The teacher worker: what it remembers, what it asks, and what it says it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayqd.errors import StorageError
from rayqd.model.load import load_model
from rayqd.model.wire import from_wire, to_wire
from rayqd.teacher.cache import ScoreCache
from rayqd.teacher.forward import Teacher
from rayqd.teacher.worker import LoadedTeacher, TeacherWorker, teacher_loader
from rayqd.types import HiddenPayload, Rollout, TeacherPayload


class CountingScorer:
    """Answers with the length of each completion, and with nothing to those of length 13."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        return [None if r.num_loss_tokens == 13 else s for r, s in zip(rollouts, self.hidden(rollouts), strict=True)]

    def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]:
        self.asked += [r.num_tokens for r in rollouts]
        return [HiddenPayload(hidden=to_wire(torch.full((r.num_loss_tokens, 2), r.num_loss_tokens))) for r in rollouts]


def worker(scorer: CountingScorer, cache: ScoreCache | None) -> TeacherWorker:
    loaded = LoadedTeacher(scorer=scorer, cache=cache, answers="x score", hidden_answers="x hidden")
    return TeacherWorker(0, lambda: loaded)


def test_a_text_of_the_data_is_read_once_and_what_the_student_wrote_every_time(
    tmp_path: Path, make_rollouts: Any
) -> None:
    a, b, c = make_rollouts((5, 9), (7, 3), (8, 4))
    written = replace(c, on_policy=True, policy_version=1)
    scorer = CountingScorer()
    first, _ = worker(scorer, ScoreCache(tmp_path, 10**9)).score(a, written, b)
    assert (first.num_cache_hits, first.num_cache_misses, first.num_tokens) == (0, 2, 14 + 10 + 12)

    again, scores = worker(scorer, ScoreCache(tmp_path, 10**9)).score(a, written, b)  # as after a restart
    assert (again.num_cache_hits, again.num_cache_misses, again.num_tokens) == (2, 0, 12)
    assert scorer.asked == [12, 14, 10, 12]
    assert [from_wire(s.hidden)[0, 0].item() for s in scores] == [9, 4, 3]

    exact, _ = worker(scorer, ScoreCache(tmp_path, 10**9)).hidden(a)
    assert exact.num_cache_misses == 1  # another form of answer is another entry


def test_without_a_cache_nothing_is_counted(make_rollouts: Any) -> None:
    report, _ = worker(CountingScorer(), None).score(*make_rollouts((5, 9), (7, 3)))
    assert (report.num_cache_hits, report.num_cache_misses, report.num_tokens) == (0, 0, 24)


def test_sequences_without_numbers_are_named_and_never_remembered(tmp_path: Path, make_rollouts: Any) -> None:
    scorer = CountingScorer()
    for _ in range(2):
        report, scores = worker(scorer, ScoreCache(tmp_path, 10**9)).score(*make_rollouts((5, 9), (7, 13), (8, 4)))
        assert report.quarantined == (1,)
        assert scores[1] is None
    assert scorer.asked == [14, 20, 12, 20]


@pytest.mark.parametrize("payload", ["hidden", "logits", "topk", "sampled"])
def test_a_model_that_overflows_has_no_numbers(tiny_model: Path, make_rollouts: Any, payload: str) -> None:
    from rayqd.config.sections import TeacherConfig
    from rayqd.model.load import output_head
    from rayqd.teacher.payloads import make_answer

    model = load_model(tiny_model, "float32")
    model.model.embed_tokens.weight.data[77] = float("nan")
    good, bad = make_rollouts((5, 9), (4, 6))
    for rollout in (good, bad):
        rollout.prompt_ids[:] = rollout.prompt_ids % 70
        rollout.completion_ids[:] = rollout.completion_ids % 70
    bad.prompt_ids[2] = 77
    head = output_head(model).clone()
    head[77] = 0
    teacher = Teacher(model, 8192, make_answer(TeacherConfig(payload=payload, top_k=4), head, 1.0))
    scores = teacher.score([good, bad])
    assert scores[0] is not None
    assert scores[1] is None


def test_the_real_teacher_tells_its_form_and_weights_apart(tiny_config: Any, tmp_path: Path) -> None:
    settings = [{}, {"payload": "topk"}, {"payload": "topk", "top_k": 3}, {"payload": "logits"}]
    loaded = [teacher_loader(tiny_config(teacher=each))() for each in settings]
    assert len({each.answers for each in loaded}) == 4
    assert loaded[0].answers == loaded[0].hidden_answers == loaded[1].hidden_answers
    assert loaded[0].cache.directory == tmp_path / "runs" / ".teacher-scores"


def test_only_a_directory_that_was_asked_for_must_be_writable(tiny_config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    impossible = tmp_path / "file" / "scores"
    with pytest.raises(StorageError, match="cannot be written to"):
        teacher_loader(tiny_config(teacher={"cache_dir": impossible}))()
    assert teacher_loader(tiny_config(runs_dir=impossible))().cache is None
    assert teacher_loader(tiny_config(teacher={"cache_gib": 0}))().cache is None
