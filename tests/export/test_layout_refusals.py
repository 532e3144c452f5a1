"""What GPTQ, AWQ and MLX cannot hold, and files of other writers: one line each, and nothing is misread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_model, taken_apart

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.export.destination import EXPORT_CHECKSUMS
from rayqd.export.layout_files import write_model
from rayqd.export.layouts import LayoutKind
from rayqd.export.load import load_export
from rayqd.export.write import check_kind
from rayqd.quant import Quantized

SIGNED = QuantConfig(group_size=32)


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
    parts = taken_apart(small_model("llama", tied=True), SIGNED)
    parts = replace(parts, dense_layers=["model.layers.0.mlp.up"])
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.up is inside model.layers.0.mlp.up_proj: use --as gptq"):
        write_model("awq", parts, tmp_path / "export")


def test_scale_whose_bias_is_beyond_its_type_is_refused_by_name(tmp_path: Path) -> None:
    parts = taken_apart(small_model("llama", tied=True, dtype=torch.float16), SIGNED)
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
    (directory / EXPORT_CHECKSUMS).unlink()  # which others do not write


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
    write_model(kind, taken_apart(small_model("llama", tied=True), SIGNED), tmp_path / "export")
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
    write_model(kind, taken_apart(small_model("llama", tied=True), SIGNED), tmp_path / "export")
    file = tmp_path / "export" / "config.json"
    config = json.loads(file.read_text())
    for key in {"quantization_config", "quantization"} & config.keys():
        config[key] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load_export(tmp_path / "export", "bfloat16")
