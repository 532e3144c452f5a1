"""vLLM running a mixture of experts: after every publish it computes what the learner does, to float32's roundings.

vLLM packs experts for the CPU's kernel, so an engine can hold new weights and read them as something else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayqd.config import Config
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.rollout.kernels import choose_weight_form
from rayqd.rollout.vllm import VLLMEngine
from rayqd.rollout.weights import choose_weight_loader
from rayqd.types import IntArray
from tests.rollout.served_model import error_of, trained
from tests.tiny_models import tiny_causal_model, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

PROMPT: IntArray = np.arange(3, 35, dtype=np.int32)
WIDE = {"hidden_size": 128, "head_dim": 32, "moe_intermediate_size": 128}  # what vLLM's kernels for CPUs take


def test_an_export_s_experts_are_no_reason_not_to_ask_vllm(tmp_path: Path) -> None:
    tiny_causal_model(tiny_config("qwen3_moe", **WIDE)).save_pretrained(tmp_path)
    config = Config.model_validate({"quant": {"group_size": 64}})
    assert "experts" in choose_weight_form(tmp_path, config).reason
    assert "experts" not in choose_weight_form(tmp_path, config, experts_as_codes=True).reason


def test_every_publish_of_experts_reaches_what_the_engine_computes_with(tmp_path: Path, tiny_model: Path) -> None:
    tiny_causal_model(tiny_config("qwen3_moe", **WIDE)).save_pretrained(tmp_path)
    for file in [*tiny_model.glob("*token*"), *tiny_model.glob("*.jinja")]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = Config.model_validate(
        {"model": {"dtype": "float32"}, "quant": {"group_size": 64, "init": "rtn"}, "adapter": {"rank": 4}}
    )
    engine = VLLMEngine(
        tmp_path,
        context_length=64,
        max_concurrent=2,
        gpu_memory_utilization=0.5,
        dtype="float32",
        weight_loader=choose_weight_loader(config),
    )
    student = Student.load(tmp_path, config)
    assert error_of(engine, student, PROMPT) > 0.01  # the engine has the source's own weights
    for seed in (1, 2):
        engine.load_weights(collect_rollout_weights(trained(student, seed), config))
        assert error_of(engine, student, PROMPT) < 1e-5
