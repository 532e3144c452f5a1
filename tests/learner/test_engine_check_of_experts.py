"""Two experts that are equally good for a token: an engine that rounds otherwise takes the other one, and is right.

The engine's prediction is made by a second student of the same weights but for the two rows of each router, which are
closer than the roundings of its dtype, and change places.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rayqd.config import Config
from rayqd.errors import WorkerError
from rayqd.learner.engine_check import check_engines, engine_error, engine_error_bound
from rayqd.model.hidden_states import completion_states
from rayqd.model.student import Student
from rayqd.quant.routers import find_routers
from rayqd.types import EngineProbe, IntArray, Rollout
from tests.tiny_models import tiny_causal_model, tiny_config

PROMPT: IntArray = np.random.default_rng(0).integers(3, 60, 24, dtype=np.int32)
WRITTEN: IntArray = np.random.default_rng(1).integers(3, 60, 8, dtype=np.int32)
DTYPE, NUM_LAYERS = "float32", 4


def tie_experts(model: nn.Module, *, swapped: bool) -> None:
    """Let the routers' rows for experts 0 and 1 differ by 2^-15 of themselves; `swapped`: the other way round."""
    routers = [module for name, module in find_routers(model).items() if name.endswith("gate")]
    assert len(routers) == NUM_LAYERS
    with torch.no_grad():
        for router in routers:
            weight = router.get_parameter("weight")
            noise = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(3))
            near = weight[0] * (1 + 2**-15 * noise)
            weight[0], weight[1] = (near, weight[0].clone()) if swapped else (weight[0].clone(), near)


@pytest.fixture
def make_student(tmp_path: Path) -> Callable[..., Student]:
    def make(seed: int, *, swapped: bool) -> Student:
        directory = tmp_path / f"swapped-{swapped}"
        if not directory.is_dir():
            model = tiny_causal_model(tiny_config("qwen3_moe", num_experts=4, num_experts_per_tok=1))
            tie_experts(model, swapped=swapped)
            model.save_pretrained(directory)
        config = Config.model_validate(
            {"model": {"dtype": DTYPE}, "quant": {"group_size": 32, "init": "rtn"}, "adapter": {"rank": 4}}
        )
        student = Student.load(directory, config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in student.parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        return student

    return make


def probe_of(student: Student) -> EngineProbe:
    """What a plain softmax makes of the student's states, for ids that are the likeliest."""
    rollout = Rollout(step=0, index=0, on_policy=True, prompt_ids=PROMPT, completion_ids=WRITTEN, policy_version=0)
    with torch.no_grad():
        states = completion_states(student.model, [rollout])
        weight = student.model.get_output_embeddings().weight
        logprobs = (states @ weight.mT).double().log_softmax(-1).topk(16)
    return EngineProbe(
        policy_version=0,
        prompt_ids=PROMPT,
        completion_ids=WRITTEN,
        top_ids=logprobs.indices.numpy().astype(np.int32),
        logprobs=logprobs.values.float().numpy(),
    )


def test_an_engine_that_takes_the_other_of_two_equal_experts_is_right(make_student: Callable[..., Student]) -> None:
    student, engine = make_student(1, swapped=False), make_student(1, swapped=True)
    assert len(student.routers) == NUM_LAYERS
    probe = probe_of(engine)
    error = engine_error(student, probe)
    assert error > engine_error_bound(DTYPE, NUM_LAYERS)  # so that the bound of a dense model would refuse it
    assert check_engines(student, [probe], DTYPE) == error


def test_an_engine_with_other_experts_is_refused_all_the_same(make_student: Callable[..., Student]) -> None:
    student = make_student(1, swapped=False)
    with pytest.raises(WorkerError, match=r"off by \d+\.\d% of their spread"):
        check_engines(student, [probe_of(make_student(2, swapped=False))], DTYPE)


def test_a_single_token_that_went_elsewhere_is_no_other_model(make_student: Callable[..., Student]) -> None:
    student = make_student(1, swapped=False)
    probe = probe_of(student)
    probe.logprobs[3] += 1.0
    assert engine_error(student, probe) < 1e-4
    probe.logprobs[:] += 1.0
    assert engine_error(student, probe) > 0.05
