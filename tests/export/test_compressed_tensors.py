"""A written checkpoint as transformers and its reader see it."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rayqd.config.sections import QuantConfig
from rayqd.errors import ModelError, StorageError
from rayqd.export.compressed_tensors import make_quantization_config, read_quantized, write_checkpoint
from rayqd.quant import Quantized, make_grid, quantizable_layers

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def tiny_model(architecture: str, *, tied: bool, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": tied,
    }
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    for parameter in model.parameters():  # parameters alone: a cast of the rotary buffers would move the logits
        parameter.data = torch.randn_like(parameter).mul_(0.1).to(dtype)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "one", "two"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
    )


def quantize(model: PreTrainedModel, quant: QuantConfig, dtype: torch.dtype = torch.bfloat16) -> dict[str, Quantized]:
    grid = make_grid(quant, dtype)
    return {name: grid.quantize(layer.weight) for name, layer in quantizable_layers(model, quant).items()}


def write(
    model: PreTrainedModel, quantized: dict[str, Quantized], quant: QuantConfig, directory: Path, **options: Any
) -> int:
    return write_checkpoint(
        config=model.config,
        generation_config=model.generation_config,
        dense=model.state_dict(),
        quantized=quantized,
        quant=quant,
        tokenizer=tiny_tokenizer(),
        directory=directory,
        **options,
    )


def assert_same(actual: Quantized, expected: Quantized) -> None:
    assert torch.equal(actual.codes, expected.codes)
    assert actual.scales.dtype == expected.scales.dtype
    assert torch.equal(actual.scales, expected.scales)
    assert (actual.zero_points is None) == (expected.zero_points is None)
    if actual.zero_points is not None and expected.zero_points is not None:
        assert torch.equal(actual.zero_points, expected.zero_points)


@pytest.mark.parametrize("rule", ["signed", "absmax", "asymmetric"])
@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen3", False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_transformers_loads_the_bits_that_were_quantized(
    tmp_path: Path, rule: str, architecture: str, tied: bool, dtype: torch.dtype
) -> None:
    quant = QuantConfig.model_validate({"rule": rule, "group_size": 32})
    model = tiny_model(architecture, tied=tied, dtype=dtype)
    quantized = quantize(model, quant, dtype)
    write(model, quantized, quant, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        logits = loaded(tokens).logits  # the first forward pass unpacks the weights
        grid = make_grid(quant, dtype)
        for name, weight in quantized.items():
            model.get_parameter(f"{name}.weight").copy_(grid.dequantize(weight))
        expected_logits = model(tokens).logits
    assert len(quantized) == 2 * 7
    actual, expected = loaded.state_dict(), model.state_dict()
    assert expected.keys() <= actual.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name
    assert torch.equal(logits, expected_logits)


def test_directory_holds_everything_a_loader_asks_for(tmp_path: Path) -> None:
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=True)
    directory = tmp_path / "deeper" / "export"
    num_bytes = write(model, quantize(model, quant), quant, directory)
    names = {file.name for file in directory.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert num_bytes == sum(file.stat().st_size for file in directory.iterdir())
    assert [entry.name for entry in directory.parent.iterdir()] == ["export"]
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["quantization_config"] == make_quantization_config(quant)
    assert model.config.to_dict().get("quantization_config") is None
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.chat_template == TEMPLATE
    stored = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert not [name for name in stored if name.endswith("_proj.weight")]
    assert stored["model.layers.0.self_attn.q_proj.bias"].dtype == torch.bfloat16


@pytest.mark.parametrize("rule", ["signed", "asymmetric"])
def test_codes_are_read_back_as_they_were_written(tmp_path: Path, rule: str) -> None:
    quant = QuantConfig.model_validate({"rule": rule, "group_size": 32})
    model = tiny_model("qwen3", tied=True)
    quantized = quantize(model, quant)
    write(model, quantized, quant, tmp_path / "export")
    read = read_quantized(tmp_path / "export")
    assert read.keys() == quantized.keys()
    for name, weight in quantized.items():
        assert_same(read[name], weight)


def test_float32_masters_are_stored_in_the_dtype_of_the_scales(tmp_path: Path) -> None:
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=True, dtype=torch.float32)
    write(model, quantize(model, quant, torch.float16), quant, tmp_path / "export")
    stored = load_file(tmp_path / "export" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == "float16"


def test_large_model_is_split_into_shards_with_an_index(tmp_path: Path) -> None:
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=False)
    quantized = quantize(model, quant)
    write(model, quantized, quant, tmp_path / "whole")
    write(model, quantized, quant, tmp_path / "split", max_shard_bytes=8000)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    shards = {name: load_file(tmp_path / "split" / name) for name in set(index["weight_map"].values())}
    assert sorted(shards) == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert len(shards) > 2
    for name, tensor in whole.items():
        assert torch.equal(shards[index["weight_map"][name]][name], tensor)
    for shard in shards.values():
        assert sum(tensor.nbytes for tensor in shard.values()) <= 8000
    for name, weight in read_quantized(tmp_path / "split").items():
        assert_same(weight, quantized[name])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "split")
    assert torch.equal(loaded.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_ignored_layers_stay_dense_for_the_loader_too(tmp_path: Path) -> None:
    quant = QuantConfig(group_size=32, ignore=["lm_head", "self_attn.o_proj", "model.layers.1.mlp.down_proj"])
    model = tiny_model("llama", tied=True)
    quantized = quantize(model, quant)
    assert len(quantized) == 2 * 7 - 3
    write(model, quantized, quant, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export").state_dict()
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"):
        assert torch.equal(loaded[f"{name}.weight"], model.get_parameter(f"{name}.weight"))
    packed = {name.removesuffix(".weight_packed") for name in loaded if name.endswith(".weight_packed")}
    assert packed == quantized.keys()


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to write more into one file, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit_bytes", [100, 20_000])  # config.json does not fit; the weights do not
def test_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, limit_bytes: int) -> None:
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=True)
    quantized = quantize(model, quant)
    old = {"one": quantized.pop("model.layers.0.mlp.up_proj")}
    write(model, old, quant, tmp_path / "export")
    with files_no_larger_than(limit_bytes), pytest.raises(StorageError, match=r"export, which needs \d{5} bytes: .+"):
        write(model, quantized, quant, tmp_path / "export")
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]
    assert read_quantized(tmp_path / "export").keys() == {"one"}
    write(model, quantized, quant, tmp_path / "export")
    assert read_quantized(tmp_path / "export").keys() == quantized.keys()
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def test_directory_under_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=True)
    with pytest.raises(StorageError, match="cannot write the checkpoint"):
        write(model, quantize(model, quant), quant, tmp_path / "file" / "export")


def test_reading_a_directory_without_codes_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no packed INT4 weights"):
        read_quantized(tmp_path)


def test_reading_a_truncated_file_is_a_model_error(tmp_path: Path) -> None:
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=True)
    write(model, quantize(model, quant), quant, tmp_path / "export")
    file = tmp_path / "export" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        read_quantized(tmp_path / "export")


def test_reading_a_checkpoint_with_a_shard_missing_is_a_model_error(tmp_path: Path) -> None:
    quant = QuantConfig(group_size=32)
    model = tiny_model("llama", tied=True)
    quantized = {"one": quantize(model, quant)["model.layers.0.mlp.up_proj"]}
    write(model, quantized, quant, tmp_path / "export", max_shard_bytes=1)
    weight_map = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())["weight_map"]
    (tmp_path / "export" / weight_map["one.weight_scale"]).unlink()
    with pytest.raises(ModelError, match="one lacks weight_scale"):
        read_quantized(tmp_path / "export")
