"""GPTQ and AWQ exports in vLLM, with scales below zero and with zero points: it predicts as transformers does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import small_model, taken_apart

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.export.layout_files import write_model
from rayqd.export.layouts import LayoutKind
from rayqd.export.load import load_export
from rayqd.export.verify import compute_token_logprobs
from rayqd.rollout.parity import explain_missing_vllm, measure_vllm_change

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

# Nats a token. Random weights this small: vLLM's and transformers' roundings to bfloat16 are 2^-8 of logits below one.
MAX_CHANGE = 2**-8


@pytest.mark.parametrize(("kind", "rule"), [("gptq", "signed"), ("awq", "signed"), ("awq", "asymmetric")])
def test_vllm_predicts_what_transformers_does(tmp_path: Path, kind: LayoutKind, rule: str) -> None:
    quant = QuantConfig.model_validate({"group_size": 32, "rule": rule})
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "max_position_embeddings": 128}
    model = small_model("llama", tied=False, bos_token_id=None, **sizes)
    write_model(kind, taken_apart(model, quant), tmp_path / "export")
    config = Config.model_validate({"model": {"name": str(tmp_path / "export"), "dtype": "bfloat16"}, "quant": quant})
    if reason := explain_missing_vllm(kind, tmp_path / "export", config):
        pytest.skip(reason)
    tokens = np.arange(1, 60, dtype=np.int32)
    expected = compute_token_logprobs(load_export(tmp_path / "export", "bfloat16"), tokens)
    found = measure_vllm_change(tmp_path / "export", config, [tokens], [expected])
    assert found.value is not None, found.text
    assert found.value < MAX_CHANGE
