"""An NF4 or FP4 checkpoint as bitsandbytes and transformers read it, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import assert_same_tensors, rounded, small_model, taken_apart
from transformers import AutoModelForCausalLM

from rayqd.config.sections import QuantConfig
from rayqd.errors import ModelError
from rayqd.export.bitsandbytes import read_quantized, write_model

bitsandbytes = pytest.importorskip("bitsandbytes")


def grid(form: str, *, double_quant: bool, **fields: object) -> QuantConfig:
    return QuantConfig.model_validate({"format": form, "group_size": 32, "double_quant": double_quant, **fields})


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize(("architecture", "dtype"), [("llama", torch.bfloat16), ("qwen3", torch.float16)])
def test_transformers_loads_every_weight_bit_for_bit_and_the_same_logits(
    tmp_path: Path, form: str, double_quant: bool, architecture: str, dtype: torch.dtype
) -> None:
    model = small_model(architecture, tied=architecture == "llama", dtype=dtype)
    parts = taken_apart(model, grid(form, double_quant=double_quant))
    write_model(parts, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    for name in parts.quantized:
        layer = loaded.get_submodule(name)
        assert isinstance(layer, bitsandbytes.nn.Linear4bit)
        assert layer.weight.quant_state.nested == double_quant
    dense = loaded.dequantize(dtype=dtype).eval()
    expected = rounded(model, parts)
    assert_same_tensors(dense, expected)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(dense(tokens).logits, expected(tokens).logits)


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_files_hold_what_bitsandbytes_itself_would_save(tmp_path: Path, form: str, double_quant: bool) -> None:
    model = small_model("llama", tied=True)
    parts = taken_apart(model, grid(form, double_quant=double_quant))
    write_model(parts, tmp_path / "export")
    stored = load_file(tmp_path / "export" / "model.safetensors")
    layer = "model.layers.1.mlp.down_proj"
    packed, state = bitsandbytes.functional.quantize_4bit(
        model.get_parameter(f"{layer}.weight"), blocksize=32, compress_statistics=double_quant, quant_type=form
    )
    theirs = {"weight": packed, **{f"weight.{name}": t for name, t in state.as_dict(packed=True).items()}}
    ours = {name.removeprefix(f"{layer}."): t for name, t in stored.items() if name.startswith(f"{layer}.")}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape or "quant_state" in name, name
        if "quant_state" in name:
            assert json.loads(bytes(ours[name].tolist())) == json.loads(bytes(tensor.tolist()))
        else:
            assert torch.equal(ours[name], tensor), name


def test_ignored_layers_stay_dense_for_the_loader_too(tmp_path: Path) -> None:
    model = small_model("llama", tied=False)
    ignore = ["lm_head", "o_proj", "model.layers.1.mlp.up_proj"]
    parts = taken_apart(model, grid("nf4", double_quant=False, ignore=ignore))
    assert len(parts.quantized) == 2 * 7 - 3
    write_model(parts, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    found = {n for n, m in loaded.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert found == parts.quantized.keys()
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))


@pytest.mark.parametrize("double_quant", [False, True])
def test_codes_are_read_back_as_they_were_written(tmp_path: Path, double_quant: bool) -> None:
    parts = taken_apart(small_model("qwen3", tied=True), grid("nf4", double_quant=double_quant))
    write_model(parts, tmp_path / "export", max_shard_bytes=20_000)
    assert len(list((tmp_path / "export").glob("*.safetensors"))) > 1
    read = read_quantized(tmp_path / "export")
    assert read.keys() == parts.quantized.keys()
    for name, weight in parts.quantized.items():
        assert torch.equal(read[name].codes, weight.codes)
        assert torch.equal(read[name].scales, weight.scales)
        assert (read[name].nested is not None) == double_quant


def test_reading_a_directory_without_codes_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights of bitsandbytes'"):
        read_quantized(tmp_path)
