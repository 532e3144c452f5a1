"""vLLM's own reload, on the CPU without graphs: what it moves is put back, and the engine computes as before."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.config import Config
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.rollout.rank import has_graphs
from rayqd.rollout.reload import list_addresses
from rayqd.types import IntArray
from tests.rollout.served_model import served_model

TOKENS: IntArray = np.random.default_rng(0).integers(3, 128, 40, dtype=np.int32)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_reload_on_gpu.py does more")
def test_every_address_of_a_real_engine_outlives_a_reload(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayqd.rollout.kernels import choose_weight_form
    from rayqd.rollout.vllm import VLLMEngine
    from rayqd.rollout.weights import choose_weight_loader

    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path))
    config = Config.model_validate({"quant": {"group_size": 64, "init": "rtn"}, "adapter": {"rank": 4}})
    loader = choose_weight_loader(config, choose_weight_form(tiny_model, config))

    def make_engine() -> Any:
        return VLLMEngine(
            loader.prepare_checkpoint(tiny_model, config),
            context_length=64,
            max_concurrent=2,
            gpu_memory_utilization=0.5,
            dtype="bfloat16",
            weight_loader=loader,
        )

    forgotten = make_engine()
    forgotten.itself = forgotten  # a cycle, which is collected at any time
    del forgotten
    engine = make_engine()
    gc.unfreeze()  # vLLM has frozen what there was when an engine was made
    gc.collect()  # and takes nothing from the engine that is there now
    assert not has_graphs(engine._llm.llm_engine.vllm_config)
    student = Student.load(tiny_model, config)
    for parameter in student.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    published = collect_rollout_weights(student, config)
    engine.load_weights(published)
    expected = engine.prompt_logprobs(TOKENS)
    monkeypatch.setattr("rayqd.rollout.rank.has_graphs", lambda _: True)
    model = served_model(engine)
    before = list_addresses(model)
    num_packed = sum(name.endswith("weight_packed") for name in before)
    assert num_packed in (0, 8)  # 4 fused layers of 2; none where it is dense
    for _ in range(3):
        engine.load_weights(published)
        assert list_addresses(model) == before
        assert engine.prompt_logprobs(TOKENS) == expected
