"""A GGUF file as the gguf package and transformers read it; nothing of ours reads it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from small_models import assert_same_tensors, byte_tokenizer, rounded, small_model, taken_apart
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError, StorageError
from rayqd.export.gguf import FILE_NAME, pack_q4_0, write_gguf
from rayqd.export.gguf_tokenizer import pre_tokenizer_name
from rayqd.quant import Quantized, make_grid

Q4_0 = QuantConfig(group_size=32)
TEXT = "the other 12 theses:\n\n  def f(x): return 'the'<|end|> héllo"


def load(directory: Path, dtype: torch.dtype):
    config = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=FILE_NAME, quantization_config=config, dtype=dtype
    ).eval()


@pytest.mark.parametrize(
    ("architecture", "tied", "changes"),
    [
        ("llama", True, {}),
        ("llama", False, {"head_dim": 32}),
        ("qwen2", True, {}),
        ("qwen3", False, {"head_dim": 128}),  # transformers takes it for 128 whatever the file says
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", ["signed", "absmax"])
def test_transformers_loads_the_bits_and_computes_the_logits_that_were_trained(
    tmp_path: Path, architecture: str, tied: bool, changes: dict[str, int], dtype: torch.dtype, rule: str
) -> None:
    model = small_model(architecture, tied=tied, dtype=dtype, **changes)
    parts = taken_apart(model, QuantConfig.model_validate({"group_size": 32, "rule": rule}))
    write_gguf(parts, tmp_path / "export")
    loaded = load(tmp_path / "export", dtype)
    expected = rounded(model, parts)
    assert len(parts.quantized) == 14
    assert_same_tensors(loaded, expected)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, expected(tokens).logits)


def test_gguf_package_dequantizes_a_block_to_code_times_scale(tmp_path: Path) -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 4)  # [3, 64]
    scales = torch.tensor([[0.5, -0.25], [0.0, 1.0], [-3.0, 2.0**-10]], dtype=torch.bfloat16)
    blocks = pack_q4_0(Quantized(codes, scales), name="layer")
    assert blocks.shape == (3, 2 * 18)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    expected = codes.view(3, 2, 32).double().numpy() * scales.double().numpy()[:, :, None]
    assert np.array_equal(values, expected.reshape(3, 64))


def test_gguf_packages_own_quantizer_gives_the_same_bytes_under_the_signed_rule() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    quantized = make_grid(Q4_0, torch.float16).quantize(weight)
    values = make_grid(Q4_0, torch.float16).dequantize(quantized).float().numpy()
    again = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    # float16 values that lie on the grid: the rule finds the same scale, and so the same codes
    assert (again == pack_q4_0(quantized, name="layer")).mean() > 0.99


def test_file_says_what_llama_cpp_asks_for(tmp_path: Path) -> None:
    model = small_model("llama", tied=True, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    num_bytes = write_gguf(taken_apart(model, Q4_0, card="card"), tmp_path / "export")
    assert {file.name for file in (tmp_path / "export").iterdir()} == {FILE_NAME, "README.md", "rayqd-checksums.json"}
    assert num_bytes == sum(file.stat().st_size for file in (tmp_path / "export").iterdir())
    reader = gguf.GGUFReader(tmp_path / "export" / FILE_NAME)
    said = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_0,
        "general.quantization_version": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5e5,
        "llama.vocab_size": 288,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: said[name] for name in expected} == expected
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "BF16"
    assert types["blk.1.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == "Q4_0"
    assert "output.weight" not in types  # tied
    assert len(types) == 2 * (7 + 2) + 2


@pytest.mark.parametrize(("ignores_merges", "name"), [(True, "llama-bpe"), (False, "dbrx")])
def test_split_of_llama_3_has_the_name_under_which_whole_pieces_are_merged_or_not(
    ignores_merges: bool, name: str
) -> None:
    # the tokenizer.json of Llama 3, which ignores merges
    regex = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    regex += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    steps: Any = [{"type": "Split", "pattern": {"Regex": regex}}, {"type": "ByteLevel", "use_regex": False}]
    model: Any = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": ignores_merges}
    described: Any = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": model, "added_tokens": []}
    assert pre_tokenizer_name(described) == name


@pytest.mark.parametrize("split", ["gpt-2", "qwen2"])
def test_tokenizer_that_is_read_back_gives_the_same_tokens(tmp_path: Path, split: str) -> None:
    tokenizer = byte_tokenizer(split=split)
    write_gguf(taken_apart(small_model("qwen2", tied=True), Q4_0, tokenizer=tokenizer), tmp_path / "export")
    fields = gguf.GGUFReader(tmp_path / "export" / FILE_NAME).fields
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    assert (len(tokens), tokens[261], types[260], types[261]) == (288, "[PAD261]", 3, 5)
    assert fields["tokenizer.ggml.pre"].contents() == split
    read = AutoTokenizer.from_pretrained(tmp_path / "export", gguf_file=FILE_NAME)
    assert read(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert (read.eos_token_id, read.chat_template) == (tokenizer.eos_token_id, tokenizer.chat_template)


def test_scale_that_float16_cannot_hold_is_an_error_that_names_the_layer(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True), Q4_0)
    layer = "model.layers.1.mlp.up_proj"
    weight = parts.quantized[layer]
    scales = weight.scales.clone()
    scales[3, 1] = 1.0078125 * 2.0**-20  # 8 significant bits, of which float16 keeps 4 below 2^-14
    quantized = {**parts.quantized, layer: Quantized(weight.codes, scales)}
    with pytest.raises(ModelError, match=rf"{layer} has 1 scales out of 192 that float16.*--model.dtype float16"):
        write_gguf(replace(parts, quantized=quantized), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        (QuantConfig(group_size=64), "in groups of 32 without zero points, not int4 in groups of 64 by rule signed"),
        (QuantConfig(group_size=32, rule="asymmetric"), "by rule asymmetric"),
        (QuantConfig.model_validate({"format": "nf4", "group_size": 32}), "not nf4"),
    ],
)
def test_other_grid_is_one_clear_line(tmp_path: Path, quant: QuantConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_gguf(replace(taken_apart(small_model("llama", tied=True), Q4_0), quant=quant), tmp_path / "export")


def test_other_architecture_rotation_or_tokenizer_is_one_clear_line(tmp_path: Path) -> None:
    model = small_model("llama", tied=True)
    parts = taken_apart(model, Q4_0)
    model.config.rope_parameters = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ConfigError, match="rotary embedding yarn"):
        write_gguf(parts, tmp_path / "export")
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    unknown = byte_tokenizer()
    unknown.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ModelError, match="splits text in a way that GGUF export has no name for"):
        write_gguf(replace(parts, tokenizer=unknown), tmp_path / "export")
    model.config.model_type = "falcon"
    with pytest.raises(ConfigError, match=r"GGUF export knows llama, mistral, qwen2, qwen3, .*, not falcon"):
        write_gguf(parts, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_existing_directory_stays_unless_overwritten(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True), Q4_0)
    (tmp_path / "export").mkdir()
    with pytest.raises(StorageError, match="export exists already; add --overwrite"):
        write_gguf(parts, tmp_path / "export", overwrite=False)
    assert list((tmp_path / "export").iterdir()) == []
    write_gguf(parts, tmp_path / "export", overwrite=True)
    assert (tmp_path / "export" / FILE_NAME).is_file()
