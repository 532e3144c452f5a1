"""Exports of models with experts: read back by transformers, by rayqd, and compared with what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import byte_tokenizer
from transformers import AutoModelForCausalLM

from rayqd.export.digest import digest_layers, find_differing_layers
from rayqd.export.load import load_export, read_quantized_model
from rayqd.export.source_names import match_export
from rayqd.export.verify import compare
from rayqd.export.write import export
from rayqd.model.load import load_model
from rayqd.model.student import Student
from tests.model.small_architectures import make_model

IDS = torch.tensor([[5, 17, 3, 88, 41, 9, 60, 23]])
MOE = ["mixtral", "qwen2_moe", "deepseek_v3", "olmoe"]


@pytest.fixture
def trained(request: pytest.FixtureRequest, tmp_path: Path, tiny_config: Any) -> tuple[Student, Path, Any]:
    """A student whose adapters are not zero, its export, and the run's settings."""
    source = tmp_path / "source"
    make_model(request.param, vocab_size=288).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    config = tiny_config(model={"name": str(source), "dtype": "float32"}, quant={"group_size": 32})
    student = Student(load_model(source, "float32"), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.parameters().items():
            if ".lora_B." in name:
                parameter.normal_(std=0.05)
    export(student, source, config, tmp_path / "export")
    return student, tmp_path / "export", config


@pytest.mark.parametrize("trained", MOE, indirect=True)
def test_transformers_loads_what_was_trained(trained: tuple[Student, Path, Any]) -> None:
    student, directory, config = trained
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    loaded.set_experts_implementation("eager")
    student.model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = loaded(input_ids=IDS).logits
        own = student.model(input_ids=IDS).logits
    torch.testing.assert_close(own, logits, rtol=1e-4, atol=1e-4)

    model = load_export(directory, "float32")
    found = compare(model, student.quantized_layers(), student.dense_tensors(), student.grid)
    assert found.equal, found.differing[:5]
    parts = read_quantized_model(directory, config)
    names = match_export(directory, parts.quantized)
    assert compare(model, parts.quantized.items(), parts.dense, student.grid, names).equal
    digests = digest_layers(student)
    assert len(digests) == found.num_quantized
    assert find_differing_layers(digests, model) == []


@pytest.mark.parametrize("trained", MOE, indirect=True)
def test_each_expert_has_its_own_4_bit_matrices_and_routers_are_ignored(trained: tuple[Student, Path, Any]) -> None:
    _, directory, _ = trained
    stored = load_file(directory / "model.safetensors")
    experts = {name.rpartition(".")[0] for name in stored if ".experts." in name}
    assert all(stored[f"{name}.weight_packed"].dtype == torch.int32 for name in experts)
    assert not any(name.endswith(".weight") for name in stored if ".experts." in name)
    ignored = json.loads((directory / "config.json").read_text())["quantization_config"]["ignore"]
    assert any(entry.endswith("gate") for entry in ignored)


@pytest.mark.parametrize("trained", ["qwen2_moe"], indirect=True)
def test_a_changed_expert_is_found_out(trained: tuple[Student, Path, Any]) -> None:
    student, directory, _ = trained
    model = load_export(directory, "float32")
    digests = digest_layers(student)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")[2, 40, 7] += 1  # in the up projection
    assert find_differing_layers(digests, model) == ["model.layers.1.mlp.experts.2.up_proj"]
    found = compare(model, student.quantized_layers(), student.dense_tensors(), student.grid)
    (differing,) = found.differing
    assert differing.startswith("model.layers.1.mlp.experts.2.up_proj.weight: 1 of 2,048 values differ")
