"""GPTQ, AWQ and MLX files against their published layouts, read number by number; nothing of ours unpacks them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layout_readers import sixteen_bit, unpack_awq, unpack_gptq, unpack_mlx
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from small_models import assert_same_tensors, byte_tokenizer, rounded, small_model, taken_apart

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import StorageError
from rayqd.export.layout_files import write_model
from rayqd.export.layouts import LayoutKind
from rayqd.export.load import load_export, read_kind
from rayqd.export.model_card import make_model_card
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.verify import compare
from rayqd.export.write import export
from rayqd.model.load import load_model
from rayqd.model.student import Student
from rayqd.quant import Quantized
from rayqd.quant.packing import awq, gptq, int4, mlx
from tests.model.small_architectures import make_model

RULES = ("signed", "absmax", "asymmetric")


def grid(rule: str) -> QuantConfig:
    return QuantConfig.model_validate({"group_size": 32, "rule": rule})


def random_weight(rule: str, *, num_rows: int = 24, num_columns: int = 96) -> tuple[Quantized, np.ndarray]:
    """Codes, scales and zero points of every size, and the values (code - zero) · scale in float64."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-8, 8, (num_rows, num_columns), generator=generator, dtype=torch.int8)
    scales = torch.randn(num_rows, num_columns // 32, generator=generator).to(torch.bfloat16)
    scales[0, 0] = 0.0
    zeros = torch.randint(-8, 8, scales.shape, generator=generator, dtype=torch.int8) if rule == "asymmetric" else None
    scales = scales if rule == "signed" else scales.abs()
    steps = codes.double().reshape(*scales.shape, 32) - (0 if zeros is None else zeros.double()[:, :, None])
    values = (steps * scales.double()[:, :, None]).reshape(num_rows, num_columns)
    return Quantized(codes, scales, zeros), values.numpy()


@pytest.mark.parametrize("rule", RULES)
def test_every_number_of_a_layer_is_where_the_format_has_it(rule: str) -> None:
    weight, values = random_weight(rule)
    offset = 0 if rule == "asymmetric" else 1  # version 1 stores a zero point less one
    assert np.array_equal(unpack_gptq(gptq.pack(weight), zero_offset=offset), values)
    assert np.array_equal(unpack_awq(awq.pack(weight), 32), values)
    if rule != "asymmetric":
        tensors = mlx.pack(weight)
        parts = (tensors["weight"].numpy(), sixteen_bit(tensors["scales"]), sixteen_bit(tensors["biases"]))
        assert np.array_equal(unpack_mlx(*parts, 32), values)


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_of_a_single_group_is_packed_like_any_other(rule: str) -> None:
    weight, values = random_weight(rule, num_columns=32)
    offset = 0 if rule == "asymmetric" else 1
    assert np.array_equal(unpack_gptq(gptq.pack(weight), zero_offset=offset), values)
    assert np.array_equal(unpack_awq(awq.pack(weight), 32), values)
    again = int4.unpack(int4.pack(weight))
    assert torch.equal(again.codes, weight.codes)
    assert again.zero_points is weight.zero_points or torch.equal(again.zero_points, weight.zero_points)  # pyright: ignore


@pytest.mark.parametrize("rule", RULES)
def test_unpacking_gives_the_codes_that_were_packed(rule: str) -> None:
    weight, _ = random_weight(rule)
    symmetric = rule != "asymmetric"
    for unpacked in (
        gptq.unpack(gptq.pack(weight), symmetric=symmetric),
        awq.unpack(awq.pack(weight), symmetric=symmetric),
        *([mlx.unpack(mlx.pack(weight))] if symmetric else []),
    ):
        assert torch.equal(unpacked.codes, weight.codes)
        assert torch.equal(unpacked.scales, weight.scales)
        assert (unpacked.zero_points is None) == symmetric
        assert symmetric or torch.equal(unpacked.zero_points, weight.zero_points)  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "architecture", "rule"),
    [
        ("gptq", "llama", "signed"),
        ("gptq", "qwen2", "asymmetric"),
        ("awq", "qwen3", "signed"),
        ("awq", "llama", "asymmetric"),
        ("mlx", "qwen2", "signed"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_files_hold_the_values_that_were_trained(
    tmp_path: Path, kind: LayoutKind, architecture: str, rule: str, dtype: torch.dtype
) -> None:
    model = small_model(architecture, tied=architecture == "qwen2", dtype=dtype)
    parts = taken_apart(model, grid(rule), card="card")
    num_bytes = write_model(kind, parts, tmp_path / "export")
    assert num_bytes == sum(file.stat().st_size for file in (tmp_path / "export").iterdir())
    expected = rounded(model, parts)
    layer = "model.layers.1.mlp.down_proj"
    values = expected.get_parameter(f"{layer}.weight").detach().float().numpy()
    read = unpacked_layer(tmp_path / "export", kind, rule, layer)
    assert np.array_equal(torch.from_numpy(read).to(dtype).float().numpy(), values)
    assert read_kind(tmp_path / "export") == kind
    loaded = load_export(tmp_path / "export", str(dtype).removeprefix("torch."))
    assert_same_tensors(loaded, expected)


def unpacked_layer(directory: Path, kind: LayoutKind, rule: str, layer: str) -> np.ndarray:
    tensors = load_file(directory / "model.safetensors")
    parts = {name.removeprefix(f"{layer}."): tensor for name, tensor in tensors.items() if name.startswith(layer)}
    if kind == "gptq":
        return unpack_gptq(parts, zero_offset=0 if rule == "asymmetric" else 1)
    if kind == "awq":
        return unpack_awq(parts, 32)
    packed = parts["weight"].numpy()
    return unpack_mlx(packed, sixteen_bit(parts["scales"]), sixteen_bit(parts["biases"]), 32)


def test_codes_of_mlx_lie_in_unsigned_numbers_as_its_reader_wants_them(tmp_path: Path) -> None:
    write_model(
        "mlx", taken_apart(small_model("llama", tied=True, dtype=torch.float16), grid("signed")), tmp_path / "x"
    )
    tensors = load_numpy(tmp_path / "x" / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == np.uint32
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (96, 64 // 8)
    assert tensors["model.layers.0.mlp.up_proj.biases"].shape == (96, 2)


@pytest.mark.parametrize(
    ("kind", "rule", "said"),
    [
        ("gptq", "signed", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}),
        ("gptq", "asymmetric", {"sym": False, "checkpoint_format": "gptq_v2"}),
        ("awq", "absmax", {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}),
        ("mlx", "signed", {"bits": 4, "group_size": 32, "mode": "affine"}),
    ],
)
def test_config_says_what_readers_ask_for(tmp_path: Path, kind: LayoutKind, rule: str, said: dict[str, Any]) -> None:
    quant = QuantConfig.model_validate({"group_size": 32, "rule": rule, "ignore": ["lm_head", "mlp.up_proj"]})
    model = small_model("llama", tied=False)
    dense = [f"model.layers.{i}.mlp.up_proj" for i in range(2)]
    parts = replace(taken_apart(model, quant), dense_layers=["lm_head", *dense])
    write_model(kind, parts, tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    block = config["quantization_config"]
    assert block | said == block
    if kind == "mlx":
        assert config["quantization"] == block
    if kind == "awq":
        assert block["modules_to_not_convert"] == ["lm_head", *dense]
    if kind == "gptq":
        assert block["dynamic"] == {rf"-:^model\.layers\.{i}\.mlp\.up_proj$": {} for i in range(2)}


def test_awq_and_gptq_configs_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers import AwqConfig, GPTQConfig

    for kind, config_class in (("gptq", GPTQConfig), ("awq", AwqConfig)):
        write_model(kind, taken_apart(small_model("llama", tied=True), grid("signed")), tmp_path / kind)
        block = json.loads((tmp_path / kind / "config.json").read_text())["quantization_config"]
        read = config_class.from_dict(block)
        assert (read.bits, read.group_size, read.desc_act) == (4, 32, False)
        assert read.format == {"gptq": "gptq", "awq": "gemm"}[kind]


def test_existing_directory_stays_unless_overwritten(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True), grid("signed"))
    (tmp_path / "export").mkdir()
    with pytest.raises(StorageError, match="export exists already; add --overwrite"):
        write_model("awq", parts, tmp_path / "export", overwrite=False)
    write_model("awq", parts, tmp_path / "export", overwrite=True)
    assert (tmp_path / "export" / "model.safetensors").is_file()


def test_card_names_what_reads_the_files() -> None:
    config = Config.model_validate({"model": {"name": "org/base-model"}, "quant": {"rule": "asymmetric"}})
    assert "mlx_lm.server --model ." in make_model_card(config, kind="mlx")
    assert "vllm serve ." in make_model_card(config, kind="awq")
    assert "vllm serve" not in make_model_card(config, kind="gptq")  # which has zero points here


def test_tokenizer_and_card_lie_beside_the_weights(tmp_path: Path) -> None:
    parts: QuantizedModel = taken_apart(small_model("llama", tied=True), grid("signed"), card="card")
    write_model("gptq", replace(parts, tokenizer=byte_tokenizer()), tmp_path / "export")
    assert (tmp_path / "export" / "README.md").read_text() == "card"
    assert (tmp_path / "export" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptq", "awq", "mlx"])
def test_experts_are_read_back_under_the_source_s_names(tmp_path: Path, tiny_config: Any, kind: LayoutKind) -> None:
    source = tmp_path / "source"
    make_model("qwen2_moe", vocab_size=288).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    config = tiny_config(model={"name": str(source), "dtype": "bfloat16"}, quant={"group_size": 32})
    student = Student(load_model(source, "bfloat16"), config)
    export(student, source, config, tmp_path / "export", kind=kind)
    model = load_export(tmp_path / "export", "bfloat16")
    found = compare(model, student.quantized_layers(), student.dense_tensors(), student.grid)
    assert found.equal, found.differing[:5]
    stored = load_file(tmp_path / "export" / "model.safetensors")
    experts = "model.layers.1.mlp.experts.2.up_proj" if kind != "mlx" else "model.layers.1.mlp.switch_mlp.up_proj"
    assert f"{experts}.scales" in stored
    assert not any(".experts." in name for name in stored) or kind != "mlx"
