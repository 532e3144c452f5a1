"""200 reloads under CUDA graphs, with the memory that each of them freed filled with garbage in between.

A graph that reads what a reload freed computes something else, or waits for ever. Needs a GPU and three
minutes (161 s on an H200 with vLLM 0.26): `pytest tests/rollout/test_reload_on_gpu.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rayqd.config import Config
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.rank import has_graphs
from rayqd.rollout.reload import list_addresses
from rayqd.types import IntArray
from tests.rollout.served_model import served_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

NUM_RELOADS = 200
TOKENS: IntArray = np.random.default_rng(0).integers(3, 128, 48, dtype=np.int32)


@pytest.fixture(scope="module")
def wide_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in whose shapes vLLM's 4-bit kernels for GPUs are at home: 4 heads of 64, 512 wide inside."""
    directory = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    usual = LlamaConfig.from_pretrained(tiny_model).to_dict()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**(usual | sizes | {"head_dim": 64})))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)
    model.to(torch.bfloat16).save_pretrained(directory)
    for file in [*tiny_model.glob("*token*"), *tiny_model.glob("*.jinja")]:
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def trained(source: Path, config: Config, seed: int) -> Any:
    student = Student.load(source, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters().values():
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.2).to(parameter.device)
    return collect_rollout_weights(student, config)


def fill_free_memory() -> None:
    """Write all ones into whatever blocks the allocator hands out again: nan as numbers, taken as a lock."""
    sizes = [2**power for power in range(9, 24)]
    garbage = [torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in sizes for _ in range(24)]
    torch.cuda.synchronize()
    del garbage


def greedy(engine: Any) -> IntArray:
    request = SamplingRequest(prompt_ids=TOKENS[:16], seed=0, temperature=0.0, min_new_tokens=24, max_new_tokens=24)
    return engine.generate([request] * 4)[0].token_ids


@pytest.mark.parametrize("kind", ["int4", "nvfp4"])
def test_200_reloads_under_graphs_leave_addresses_and_results(
    kind: str, wide_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rayqd.rollout.kernels import choose_weight_form
    from rayqd.rollout.vllm import VLLMEngine
    from rayqd.rollout.weights import choose_weight_loader

    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path))
    quant = {"group_size": 64, "init": "rtn"} if kind == "int4" else {"format": kind}
    config = Config.model_validate({"quant": quant, "adapter": {"rank": 4}})
    form = choose_weight_form(wide_model, config)
    assert form.is_dense == (kind != "int4"), str(form)
    loader = choose_weight_loader(config, form)
    engine: Any = VLLMEngine(
        loader.prepare_checkpoint(wide_model, config),
        context_length=128,
        max_concurrent=8,
        gpu_memory_utilization=0.3,
        dtype="bfloat16",
        weight_loader=loader,
    )
    assert has_graphs(engine._llm.llm_engine.vllm_config)
    versions = [trained(wide_model, config, seed) for seed in (1, 2)]
    expected = []
    for tensors in versions:
        engine.load_weights(tensors)
        expected.append((engine.prompt_logprobs(TOKENS), greedy(engine)))
    assert not np.allclose(expected[0][0], expected[1][0], atol=0.1), "the versions must differ"
    addresses = list_addresses(served_model(engine))
    for reload in range(NUM_RELOADS):
        engine.load_weights(versions[reload % 2])
        fill_free_memory()
        logprobs, tokens = expected[reload % 2]
        np.testing.assert_allclose(engine.prompt_logprobs(TOKENS), logprobs, atol=1e-3)
        assert np.array_equal(greedy(engine), tokens), reload
    assert list_addresses(served_model(engine)) == addresses
