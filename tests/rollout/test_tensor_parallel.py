"""One engine over two processes, each with half of every layer: what it computes is what the learner does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayqd.config import Config
from rayqd.learner.engine_check import engine_error, engine_error_bound
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.kernels import choose_weight_form
from rayqd.rollout.vllm import VLLMEngine
from rayqd.rollout.weights import choose_weight_loader
from rayqd.types import IntArray
from tests.rollout.served_model import probe_of, trained

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

PROMPT: IntArray = np.arange(3, 35, dtype=np.int32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])  # as codes, where this CPU has the kernel, and as values
def test_every_publish_reaches_both_halves(
    dtype: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path))
    settings: dict[str, Any] = {
        "model": {"dtype": dtype},
        "quant": {"group_size": 32, "init": "rtn"},
        "adapter": {"rank": 4},
        "rollout": {"tensor_parallel": 2},
    }
    config = Config.model_validate(settings)
    loader = choose_weight_loader(config, choose_weight_form(tiny_model, config))
    engine = VLLMEngine(
        loader.prepare_checkpoint(tiny_model, config),
        context_length=64,
        max_concurrent=2,
        gpu_memory_utilization=0.5,
        dtype=dtype,
        weight_loader=loader,
        tensor_parallel=2,
    )
    student = Student.load(tiny_model, config)
    written: list[IntArray] = []
    for seed in (1, 2):
        engine.load_weights(collect_rollout_weights(trained(student, seed), config))
        probe = probe_of(engine, PROMPT)
        assert engine_error(student, probe) <= engine_error_bound(dtype, num_layers=2)
        request = SamplingRequest(prompt_ids=PROMPT, seed=7, temperature=0.0, min_new_tokens=8, max_new_tokens=8)
        assert np.array_equal(engine.generate([request])[0].token_ids, probe.completion_ids)
        written.append(probe.completion_ids)
    assert not np.array_equal(*written), "the versions must differ"
