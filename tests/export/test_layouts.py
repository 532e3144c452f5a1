"""GPTQ, AWQ and MLX files against their published layouts, read number by number; nothing of ours unpacks them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from small_models import assert_same_tensors, byte_tokenizer, rounded, small_model, taken_apart
from torch import Tensor

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError, StorageError
from rayqd.export.layout_files import write_model
from rayqd.export.layouts import LayoutKind
from rayqd.export.load import load_export, read_kind
from rayqd.export.model_card import make_model_card
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.write import check_kind
from rayqd.quant import Quantized
from rayqd.quant.packing import awq, gptq, mlx

RULES = ("signed", "absmax", "asymmetric")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ, awq/modules/linear/gemm.py: order_map


def grid(rule: str) -> QuantConfig:
    return QuantConfig.model_validate({"group_size": 32, "rule": rule})


def sixteen_bit(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy().astype(np.float64)


def unpack_gptq(tensors: dict[str, Tensor], *, zero_offset: int) -> np.ndarray:
    """GPTQModel's dequantization (qlinear/torch.py) as a float64 loop over every weight; returns [N, K]."""
    qweight, qzeros = (tensors[part].numpy().view(np.uint32) for part in ("qweight", "qzeros"))
    scales, groups = sixteen_bit(tensors["scales"]), tensors["g_idx"].numpy()
    num_columns, num_rows = qweight.shape[0] * 8, qweight.shape[1]
    values = np.empty((num_rows, num_columns))
    for k in range(num_columns):
        for n in range(num_rows):
            code = int(qweight[k // 8, n]) >> 4 * (k % 8) & 15
            zero = (int(qzeros[groups[k], n // 8]) >> 4 * (n % 8) & 15) + zero_offset
            values[n, k] = (code - zero) * scales[groups[k], n]
    return values


def unpack_awq(tensors: dict[str, Tensor], group_size: int) -> np.ndarray:
    """AutoAWQ's packing (awq/modules/linear/gemm.py) undone as a float64 loop over every weight; returns [N, K]."""
    qweight, qzeros = (tensors[part].numpy().view(np.uint32) for part in ("qweight", "qzeros"))
    scales = sixteen_bit(tensors["scales"])
    num_columns, num_rows = qweight.shape[0], qweight.shape[1] * 8
    values = np.empty((num_rows, num_columns))
    for k in range(num_columns):
        for column in range(num_rows // 8):
            for place, row in enumerate(AWQ_ORDER):
                n = column * 8 + row
                code = int(qweight[k, column]) >> 4 * place & 15
                zero = int(qzeros[k // group_size, column]) >> 4 * place & 15
                values[n, k] = (code - zero) * scales[k // group_size, n]
    return values


def unpack_mlx(packed: np.ndarray, scales: np.ndarray, biases: np.ndarray, group_size: int) -> np.ndarray:
    """MLX's affine form (documentation of mlx.core.quantize) as a float64 loop over every weight; returns [N, K]."""
    num_rows, num_columns = packed.shape[0], packed.shape[1] * 8
    values = np.empty((num_rows, num_columns))
    for n in range(num_rows):
        for k in range(num_columns):
            code = int(packed[n, k // 8]) >> 4 * (k % 8) & 15
            values[n, k] = scales[n, k // group_size] * code + biases[n, k // group_size]
    return values


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


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_rows_that_do_not_come_in_eights_are_refused_by_name(tmp_path: Path, kind: LayoutKind) -> None:
    parts = taken_apart(
        small_model("llama", tied=True, intermediate_size=100, vocab_size=288), ragged(), tokenizer=None
    )
    with pytest.raises(ModelError, match=r"packs eight output features.*layers.0.mlp.gate_proj has 100: use --as"):
        write_model(kind, parts, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def ragged() -> QuantConfig:
    return QuantConfig(group_size=32, ignore=["lm_head", "down_proj"])  # whose input the groups do not divide


def test_dense_name_inside_a_quantized_one_is_refused_where_readers_search_for_parts(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True), grid("signed"))
    parts = replace(parts, dense_layers=["model.layers.0.mlp.up"])
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.up is inside model.layers.0.mlp.up_proj: use --as gptq"):
        write_model("awq", parts, tmp_path / "export")


def test_scale_whose_bias_is_beyond_its_type_is_refused_by_name(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True, dtype=torch.float16), grid("signed"))
    layer = "model.layers.1.mlp.up_proj"
    scales = parts.quantized[layer].scales.clone()
    scales[2, 1] = 9000.0  # eightfold it is above 65,504
    wide = {**parts.quantized, layer: Quantized(parts.quantized[layer].codes, scales)}
    with pytest.raises(ModelError, match=f"mlx cannot hold {layer}: it has scales whose eightfold is beyond"):
        write_model("mlx", replace(parts, quantized=wide), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "quant", "dtype", "message"),
    [
        ("gptq", {"format": "nf4"}, "bfloat16", "gptq holds int4 in groups of 32, 64 or 128, and this run is nf4"),
        ("awq", {"group_size": 16}, "bfloat16", "awq holds int4 in groups of 32, 64 or 128.*in groups of 16"),
        ("mlx", {"group_size": 256}, "bfloat16", "mlx holds int4 .* in groups of 256: train with"),
        ("mlx", {"rule": "asymmetric"}, "bfloat16", "mlx stores scale · zero point in 16 bits.*use --as awq"),
        ("gptq", {}, "float32", "what reads gptq has 16-bit scales, and this run is float32: use --as compressed-ten"),
        ("awq", {}, "float32", "what reads awq has 16-bit scales"),
    ],
)
def test_grid_that_the_layout_cannot_hold_is_one_clear_line(
    kind: Any, quant: dict[str, Any], dtype: str, message: str
) -> None:
    config = Config.model_validate({"model": {"name": "org/model", "dtype": dtype}, "quant": quant})
    with pytest.raises(ConfigError, match=message):
        check_kind(kind, config, "llama")


def spoil(directory: Path, part: str, change: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    name = f"model.layers.0.self_attn.o_proj.{part}"
    tensors[name] = change(tensors[name])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "part", "change", "message"),
    [
        ("gptq", "g_idx", lambda t: t.flip(0).contiguous(), r"o_proj: its columns are out of order \(desc_act\)"),
        ("gptq", "qzeros", lambda t: t + 1, "o_proj: its zero points are not those of a symmetric grid"),
        ("mlx", "biases", lambda t: t * 2, "o_proj: its biases are not those of a symmetric grid"),
    ],
)
def test_files_of_another_writer_are_refused_and_never_misread(
    tmp_path: Path, kind: LayoutKind, part: str, change: Any, message: str
) -> None:
    write_model(kind, taken_apart(small_model("llama", tied=True), grid("signed")), tmp_path / "export")
    spoil(tmp_path / "export", part, change)
    with pytest.raises(ModelError, match=message):
        load_export(tmp_path / "export", "bfloat16")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gptq", {"bits": 8}),
        ("gptq", {"checkpoint_format": "gptq_v2"}),
        ("awq", {"version": "gemv"}),
        ("mlx", {"group_size": 64}),
        ("mlx", {"mode": "mxfp4"}),
    ],
)
def test_config_of_another_packing_is_refused(tmp_path: Path, kind: LayoutKind, changes: dict[str, Any]) -> None:
    write_model(kind, taken_apart(small_model("llama", tied=True), grid("signed")), tmp_path / "export")
    file = tmp_path / "export" / "config.json"
    config = json.loads(file.read_text())
    for key in {"quantization_config", "quantization"} & config.keys():
        config[key] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_export(tmp_path / "export", "bfloat16")


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
