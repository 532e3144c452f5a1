"""An NVFP4 checkpoint as compressed-tensors and transformers read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.quant_scheme import NVFP4A16
from safetensors.torch import load_file
from small_models import assert_same_tensors, rounded, small_model, taken_apart
from transformers import AutoModelForCausalLM

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.export.compressed_tensors import make_quantization_config, read_quantized, write_model
from rayqd.export.write import write
from rayqd.quant import make_grid

NVFP4 = QuantConfig.model_validate({"format": "nvfp4"})


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen3", False)])
def test_transformers_loads_every_weight_bit_for_bit_and_the_same_logits(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    model = small_model(architecture, tied=tied)
    parts = taken_apart(model, NVFP4)
    write_model(parts, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        logits = loaded(tokens).logits  # the first forward pass unpacks the weights
        expected = rounded(model, parts)
        assert_same_tensors(loaded, expected)
        assert torch.equal(logits, expected(tokens).logits)


def test_configuration_is_the_preset_for_16_bit_activations() -> None:
    parsed = QuantizationConfig.model_validate(make_quantization_config(NVFP4))
    scheme = parsed.config_groups["group_0"]
    preset = NVFP4A16["weights"]
    assert parsed.format == "nvfp4-pack-quantized"
    assert scheme.input_activations is None
    for field in ("num_bits", "type", "strategy", "symmetric", "group_size", "scale_dtype", "dynamic"):
        assert getattr(scheme.weights, field) == getattr(preset, field), field


def test_compressed_tensors_decompresses_a_layer_to_its_values(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True), NVFP4)
    write_model(parts, tmp_path / "export")
    stored = load_file(tmp_path / "export" / "model.safetensors")
    scheme = QuantizationConfig.model_validate(make_quantization_config(NVFP4)).config_groups["group_0"]
    for name, weight in parts.quantized.items():
        tensors = {k.removeprefix(f"{name}."): t for k, t in stored.items() if k.startswith(f"{name}.weight")}
        assert {k: (t.dtype, list(t.shape)) for k, t in tensors.items()} == {
            "weight_packed": (torch.uint8, [len(weight.codes), weight.codes.shape[1] // 2]),
            "weight_scale": (torch.float8_e4m3fn, [len(weight.codes), weight.codes.shape[1] // 16]),
            "weight_global_scale": (torch.float32, [1]),
        }
        values = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized").decompress(tensors, scheme)["weight"]
        assert torch.equal(values, make_grid(NVFP4, torch.bfloat16).dequantize(weight)), name


def test_codes_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    parts = taken_apart(small_model("qwen3", tied=True), NVFP4)
    write_model(parts, tmp_path / "export")
    read = read_quantized(tmp_path / "export")
    assert read.keys() == parts.quantized.keys()
    for name, weight in parts.quantized.items():
        assert torch.equal(read[name].codes, weight.codes)
        assert torch.equal(read[name].scales.float(), weight.scales.float())
        assert torch.equal(read[name].tensor_scale, weight.tensor_scale)


def test_reading_a_layer_without_its_global_scale_is_a_model_error(tmp_path: Path) -> None:
    parts = taken_apart(small_model("qwen3", tied=True), NVFP4)
    write_model(parts, tmp_path / "export", max_shard_bytes=1)
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())["weight_map"]
    (tmp_path / "export" / index["model.layers.0.mlp.up_proj.weight_global_scale"]).unlink()
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj lacks weight_"):
        read_quantized(tmp_path / "export")


def test_other_dtypes_than_bfloat16_are_refused_because_loaders_unpack_to_it(tmp_path: Path) -> None:
    config = Config.model_validate({"quant": {"format": "nvfp4"}, "model": {"dtype": "float16"}})
    parts = taken_apart(small_model("llama", tied=True, dtype=torch.float16), NVFP4)
    with pytest.raises(ConfigError, match="unpacks nvfp4 to bfloat16 alone, and this run is float16"):
        write(parts, config, tmp_path / "export", kind="compressed-tensors", overwrite=True)
