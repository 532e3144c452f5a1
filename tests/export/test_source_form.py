"""An export beside the checkpoint that it was made from: files, config.json, names of tensors, weights nobody loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import assert_same_tensors, byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GraniteMoeConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from rayqd.config.sections import QuantConfig
from rayqd.export import compressed_tensors
from rayqd.export.load import load_export, read_quantized_model
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.source_names import to_source_names
from rayqd.export.verify import compare
from rayqd.model.load import load_meta_model, load_model
from rayqd.model.source_weights import match_names, read_stored_tensors
from rayqd.quant import make_grid, quantizable_layers

SIZES: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GENERATION = '{"temperature": 0.6,   "top_p": 0.9}\n'  # as published: no do_sample, which transformers does not write
QUANT = QuantConfig(group_size=32)


def save_source(directory: Path, model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter).mul_(0.1)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A Llama as an older transformers wrote it, with what a hub's repository has beside it."""
    directory = tmp_path / "source"
    save_source(directory, AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, bos_token_id=None)))
    config = json.loads((directory / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config |= {"rope_theta": 5e5, "rope_scaling": {**rope, "rope_type": "llama3"}, "torch_dtype": "bfloat16"}
    config |= {"num_nextn_predict_layers": 1, "a_key_of_theirs": {"é": [1, None]}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").write_text(GENERATION)
    (directory / "preprocessor_config.json").write_text('{ "size" : 28}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (directory / "LICENSE").write_text("theirs")
    (directory / "README.md").write_text("their card")
    tensors = load_file(directory / "model.safetensors")
    mtp = {"mtp.fc.weight": torch.randn(64, 128), "mtp.norm.weight": torch.ones(64, dtype=torch.float16)}
    save_file(tensors | mtp, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_rounded(source: Path, directory: Path) -> tuple[QuantizedModel, PreTrainedModel]:
    """Round the model to nearest and write it; returns its parts, and the model with the values of its codes."""
    model = load_model(source, "float32")
    grid = make_grid(QUANT, torch.float32)
    layers = quantizable_layers(model, QUANT)
    quantized = {name: grid.quantize(layer.weight, name=name) for name, layer in layers.items()}
    parts = QuantizedModel.from_model(
        model, source, QUANT, dense=model.state_dict(), quantized=quantized, dtype=torch.float32
    )
    compressed_tensors.write_model(parts, directory)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(grid.dequantize(quantized[name]))
    return parts, model


def test_files_of_the_source_are_in_the_export_byte_for_byte(source: Path, tmp_path: Path) -> None:
    write_rounded(source, tmp_path / "export")
    theirs = {file.relative_to(source) for file in source.rglob("*") if file.is_file()}
    changed = {Path("config.json"), Path("model.safetensors")}
    for file in theirs - changed - {Path("README.md")}:
        assert (tmp_path / "export" / file).read_bytes() == (source / file).read_bytes(), file
    ours = {file.relative_to(tmp_path / "export") for file in (tmp_path / "export").rglob("*") if file.is_file()}
    assert ours == theirs - {Path("README.md")} | {Path("rayqd-checksums.json")}


def test_config_is_the_source_s_but_for_the_quantization_and_the_dtype(source: Path, tmp_path: Path) -> None:
    write_rounded(source, tmp_path / "export")
    theirs = json.loads((source / "config.json").read_text())
    ours = json.loads((tmp_path / "export" / "config.json").read_text())
    assert ours.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert ours == theirs | {"torch_dtype": "float32"}
    assert list(ours) == list(theirs)


def test_tensors_have_the_source_s_names_and_what_nobody_loads_is_carried_along(source: Path, tmp_path: Path) -> None:
    parts, model = write_rounded(source, tmp_path / "export")
    theirs, ours = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "export"))
    assert {name.replace(".weight_packed", ".weight") for name in ours if "weight_s" not in name} == theirs.keys()
    for name in theirs.keys() & ours.keys():
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name
    assert list(parts.carried) == ["mtp.fc.weight", "mtp.norm.weight"]
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert "re:mtp\\..*" in config["quantization_config"]["ignore"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens, lengths=[tokens.shape[1]]).logits)
    assert_same_tensors(loaded, model)


def test_export_read_back_as_parts_is_written_again_as_it_was(source: Path, tmp_path: Path, tiny_config: Any) -> None:
    write_rounded(source, tmp_path / "first")
    config = tiny_config(model={"name": str(source), "dtype": "float32"}, quant={"group_size": 32})
    parts = read_quantized_model(tmp_path / "first", config)
    compressed_tensors.write_model(parts, tmp_path / "second")
    for file in (tmp_path / "first").rglob("*"):
        if file.is_file():
            again = tmp_path / "second" / file.relative_to(tmp_path / "first")
            assert again.read_bytes() == file.read_bytes(), file


MODELS = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "granitemoe": GraniteMoeConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"}, num_local_experts=4),
    "gemma3": Gemma3Config(text_config=SIZES, vision_config=VISION, mm_tokens_per_image=1),
}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_values_of_a_loaded_model_are_those_of_the_files_again(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    fresh = Gemma3ForConditionalGeneration(config) if name == "gemma3" else AutoModelForCausalLM.from_config(config)
    save_source(tmp_path, fresh)
    model = type(fresh).from_pretrained(tmp_path)
    names = match_names(load_meta_model(tmp_path), read_stored_tensors(tmp_path))
    assert not names.unused
    assert not names.missing
    tied = model.all_tied_weights_keys
    tensors = {key: tensor for key, tensor in model.state_dict().items() if key not in tied}
    found, expected = to_source_names(model, tensors, names), load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_names_without_the_prefix_of_a_base_model_stay_without_it(tmp_path: Path) -> None:
    """As checkpoints whose base model was saved alone, with a tied head."""
    save_source(tmp_path, AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, tie_word_embeddings=True)))
    file = tmp_path / "model.safetensors"
    save_file({name.removeprefix("model."): t for name, t in load_file(file).items()}, file, metadata={"format": "pt"})
    write_rounded(tmp_path, tmp_path / "export")
    names = load_file(tmp_path / "export" / "model.safetensors").keys()
    assert "layers.0.self_attn.q_proj.weight_packed" in names
    assert "embed_tokens.weight" in names
    assert not [name for name in names if name.startswith(("model.", "lm_head"))]


def test_weights_that_are_missing_are_named(source: Path) -> None:
    stored = read_stored_tensors(source)
    del stored["lm_head.weight"], stored["model.layers.1.mlp.up_proj.weight"]
    names = match_names(load_meta_model(source), stored)
    assert names.missing == ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]


def test_export_is_compared_under_the_names_of_its_files(source: Path, tmp_path: Path) -> None:
    parts, _ = write_rounded(source, tmp_path / "export")
    loaded = load_export(tmp_path / "export", "float32")
    names = match_names(load_meta_model(source), read_stored_tensors(source))
    found = compare(loaded, parts.quantized.items(), parts.dense, make_grid(QUANT, torch.float32), names)
    assert found.differing == ()
    assert found.num_quantized == 14
