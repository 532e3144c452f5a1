"""An engine that computes with other weights than the learner published ends the run; one that rounds does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.config import Config
from rayqd.errors import WorkerError
from rayqd.learner.engine_check import check_engines, engine_error, engine_error_bound
from rayqd.model.student import Student
from rayqd.types import EngineProbe, IntArray

PROMPT: IntArray = np.random.default_rng(0).integers(3, 128, 20, dtype=np.int32)


def student_with(seed: int, source: Path) -> Student:
    config = Config.model_validate({"quant": {"group_size": 64, "init": "rtn"}, "adapter": {"rank": 4}})
    student = Student.load(source, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return student


def probe_of(student: Student, noise: float = 0.0) -> EngineProbe:
    """What transformers' own loop writes with the student's weights; each log-probability off by `noise`, in turns."""
    ids, rows = torch.from_numpy(PROMPT.astype("int64")), []
    with torch.no_grad():
        for _ in range(4):
            logprobs = student.model(ids[None], lengths=[len(ids)]).logits[0, -1].float().log_softmax(-1)
            rows.append(logprobs.topk(16))
            ids = torch.cat([ids, logprobs.argmax()[None]])
    signs = np.where(np.arange(16) % 2, noise, -noise).astype(np.float32)
    return EngineProbe(
        policy_version=0,
        prompt_ids=PROMPT,
        completion_ids=ids[len(PROMPT) :].numpy().astype(np.int32),
        top_ids=torch.stack([row.indices for row in rows]).numpy().astype(np.int32),
        logprobs=torch.stack([row.values for row in rows]).numpy() + signs,
    )


def test_an_engine_with_the_learners_weights_is_within_the_bound(tiny_model: Path) -> None:
    student = student_with(1, tiny_model)
    error = check_engines(student, [probe_of(student)], "bfloat16")
    assert error is not None
    assert error < engine_error_bound("bfloat16", 2)
    assert check_engines(student, [], "bfloat16") is None


def test_an_engine_with_other_weights_ends_the_run(tiny_model: Path) -> None:
    student, other = student_with(1, tiny_model), student_with(2, tiny_model)
    with pytest.raises(WorkerError, match=r"does not compute with the published weights: .* off by"):
        check_engines(student, [probe_of(student), probe_of(other)], "bfloat16")


def test_the_error_is_the_difference_over_the_spread(tiny_model: Path) -> None:
    student: Any = student_with(1, tiny_model)
    exact, off = probe_of(student), probe_of(student, noise=1.0)
    whole = torch.from_numpy(np.concatenate([PROMPT, exact.completion_ids]).astype("int64"))
    with torch.no_grad():
        logprobs = (
            student.model(whole[None], lengths=[len(whole)]).logits[0, len(PROMPT) - 1 : -1].float().log_softmax(-1)
        )
    ids = torch.from_numpy(exact.top_ids.astype("int64"))
    spread = (logprobs.gather(1, ids) - logprobs.mean(-1, keepdim=True)).square().mean().sqrt().item()
    assert engine_error(student, off) == pytest.approx(1.0 / spread, rel=0.02)


def test_nan_is_beyond_every_bound(tiny_model: Path) -> None:
    student = student_with(1, tiny_model)
    with pytest.raises(WorkerError, match="nan"):
        check_engines(student, [probe_of(student, noise=float("nan"))], "bfloat16")
