"""GGUF of every architecture that it knows: read back bit for bit, refused where llama.cpp would compute another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_models import REFUSED, tiny_gguf_model
from small_models import assert_same_tensors, byte_tokenizer, rounded, taken_apart
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.export.gguf import FILE_NAME, swap_halves, write_gguf
from rayqd.export.gguf_architectures import ARCHITECTURES
from rayqd.export.gguf_metadata import rope_factors
from rayqd.export.load import load_export
from rayqd.export.quantized_model import QuantizedModel

Q4_0 = QuantConfig(group_size=32)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_what_is_read_back_is_what_was_trained(tmp_path: Path, model_type: str) -> None:
    model = tiny_gguf_model(model_type)
    parts = taken_apart(model, Q4_0)
    write_gguf(parts, tmp_path / "export")
    assert_same_tensors(load_export(tmp_path / "export", "bfloat16"), rounded(model, parts))


def test_the_page_names_every_architecture_that_is_written_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
    table = page.partition("**GGUF** is written of ")[2]
    rows = [line for line in table.splitlines() if line.startswith(("| dense", "| experts |"))]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(ARCHITECTURES)
    assert table.startswith(f"{len(named)} architectures")


def test_experts_are_found_by_the_names_that_the_source_s_files_have(tmp_path: Path) -> None:
    """Mixtral's have `block_sparse_moe.experts.3.w1`, where transformers' model has `mlp.experts.gate_up_proj`."""
    model = tiny_gguf_model("mixtral")
    model.save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    plain = taken_apart(model, Q4_0)
    parts = QuantizedModel.from_model(
        model, tmp_path / "source", Q4_0, dense=plain.dense, quantized=plain.quantized, dtype=plain.dtype
    )
    assert any(".block_sparse_moe.experts.3.w1" in name for name in parts.quantized)
    write_gguf(parts, tmp_path / "export")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "export" / FILE_NAME).tensors}
    assert stored["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    # of each expert [N, K] in the file's order, which is the reverse
    config = model.config
    assert stored["blk.0.ffn_gate_exps.weight"].shape.tolist() == [
        config.hidden_size,
        config.intermediate_size,
        config.num_local_experts,
    ]
    assert_same_tensors(load_export(tmp_path / "export", "bfloat16"), rounded(model, plain))


@pytest.mark.parametrize("model_type", ["starcoder2", "nemotron"])
def test_transformers_own_reader_computes_the_same_logits(tmp_path: Path, model_type: str) -> None:
    model = tiny_gguf_model(model_type)
    parts = taken_apart(model, Q4_0)
    write_gguf(parts, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export",
        gguf_file=FILE_NAME,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        attn_implementation="eager",
    )
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, rounded(model, parts)(tokens).logits)


@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}])
def test_scaled_rotation_is_read_back_with_the_model(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = tiny_gguf_model("llama", rope_parameters=rope, attention_bias=True, mlp_bias=True)
    parts = taken_apart(model, Q4_0)
    write_gguf(parts, tmp_path / "export")
    loaded = load_export(tmp_path / "export", "bfloat16", attention="eager")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, rounded(model, parts)(tokens).logits)


def test_factors_of_llama_3_are_those_by_which_transformers_divides_its_frequencies() -> None:
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 256}
    plain = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 1e4}))
    scaled = LlamaConfig(**sizes, rope_parameters=LLAMA3)
    expected = plain.inv_freq.double() / LlamaRotaryEmbedding(scaled).inv_freq.double()
    factors = rope_factors(scaled)
    assert factors is not None
    assert {1.0, 8.0} < set(np.round(factors, 4).tolist())  # short waves, long ones, and some between
    np.testing.assert_allclose(factors, expected.numpy(), rtol=1e-5)
    assert rope_factors(LlamaConfig(**sizes)) is None


def test_rows_that_changed_places_give_the_same_scores_when_neighbours_are_rotated() -> None:
    generator = np.random.default_rng(0)
    num_heads, size, width = 3, 8, 16
    query, key = (generator.standard_normal((num_heads * size, width)) for _ in range(2))
    x, y = generator.standard_normal((2, width))
    angles = 0.1 + generator.random(size // 2)

    def halves(vector: np.ndarray, position: int) -> np.ndarray:
        first, second = vector[: size // 2], vector[size // 2 :]
        cos, sin = np.cos(position * angles), np.sin(position * angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin])

    def neighbours(vector: np.ndarray, position: int) -> np.ndarray:
        pairs = (vector[0::2] + 1j * vector[1::2]) * np.exp(1j * position * angles)
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(-1)

    moved_query, moved_key = swap_halves(query, num_heads), swap_halves(key, num_heads)
    for head in range(num_heads):
        rows = slice(head * size, (head + 1) * size)
        expected = halves(query[rows] @ x, 5) @ halves(key[rows] @ y, 2)
        assert neighbours(moved_query[rows] @ x, 5) @ neighbours(moved_key[rows] @ y, 2) == pytest.approx(expected)
    assert np.array_equal(swap_halves(moved_query, num_heads, back=True), query)


def test_norms_of_gemma_are_stored_with_the_one_that_transformers_adds(tmp_path: Path) -> None:
    model = tiny_gguf_model("gemma2")
    write_gguf(taken_apart(model, Q4_0), tmp_path / "export")
    reader = gguf.GGUFReader(tmp_path / "export" / FILE_NAME)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = model.get_parameter("model.layers.0.input_layernorm.weight").detach().float().numpy() + 1
    assert np.array_equal(stored["blk.0.attn_norm.weight"], expected)


@pytest.mark.parametrize(("model_type", "changes", "message"), REFUSED)
def test_what_llama_cpp_would_not_compute_is_refused_by_name(
    tmp_path: Path, model_type: str, changes: dict[str, Any], message: str
) -> None:
    parts = taken_apart(tiny_gguf_model(model_type), Q4_0)
    for key, value in changes.items():
        setattr(parts.config, key, value)
    with pytest.raises(ConfigError, match=message):
        write_gguf(parts, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
