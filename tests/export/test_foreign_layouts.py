"""Layouts as others write them, packed here by loops over single numbers, and read as the weights they stand for."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rayqd.errors import ModelError
from rayqd.export.foreign_layouts import check_packed, is_packed_by_others, load_any
from rayqd.model.load import load_meta_model

GROUP = 64


@dataclass(frozen=True)
class Case:
    described: Mapping[str, Any]  # config.json's quantization_config; of MLX its `quantization`
    form: str = "gptq"
    stored_zero: int = 0  # what is taken from a zero point before it is stored
    order: bool = False  # columns belong to groups out of order
    index: bool = True  # g_idx is there
    zero: int | None = None  # all zero points, None: each its own
    bits: int = 4
    group: int = GROUP


AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": GROUP}
CASES = {
    "gptq": Case(
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False},
        stored_zero=1,
        order=True,
    ),
    "gptq_v2": Case(
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2", "sym": False},
        order=True,
    ),
    "8 bits": Case({"quant_method": "gptq", "bits": 8, "group_size": GROUP, "sym": False}, stored_zero=1, bits=8),
    "auto-round": Case(
        {**AUTO_ROUND, "packing_format": "auto_round:auto_gptq", "sym": True},
        stored_zero=1,
        index=False,
        zero=8,
    ),
    "auto-round, zeros as they are": Case({**AUTO_ROUND, "packing_format": "auto_round:gptqmodel"}, index=False),
    "a last group that is shorter": Case(
        {**AUTO_ROUND, "group_size": 48, "packing_format": "auto_round:gptqmodel"}, index=False, group=48
    ),
    "auto-round as awq": Case({**AUTO_ROUND, "packing_format": "auto_round:auto_awq"}, form="awq"),
    "mlx": Case({"bits": 4, "group_size": GROUP, "mode": "affine"}, form="mlx"),
}


def pack(numbers: np.ndarray, bits: int) -> torch.Tensor:
    """Rows of numbers as rows of int32, the first lowest."""
    rows: list[list[int]] = []
    for row in numbers.tolist():
        words = [0] * (len(row) * bits // 32)
        for i, number in enumerate(row):
            words[i * bits // 32] |= number << (i * bits % 32)
        rows.append(words)
    return torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32))


def in_awq_order(numbers: np.ndarray) -> np.ndarray:
    """Of every eight the first, third, fifth and seventh go before the others (AutoAWQ, gemm)."""
    eights = [numbers[:, i : i + 8] for i in range(0, numbers.shape[1], 8)]
    return np.concatenate([each[:, [0, 2, 4, 6, 1, 3, 5, 7]] for each in eights], axis=1)


def write_layer(shape: tuple[int, int], case: Case, random: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    """A layer's parts, and its values [N, K] in float64."""
    rows, columns = shape
    most, groups = 1 << case.bits, -(-columns // case.group)
    codes = random.integers(0, most, shape)
    zeros = random.integers(1, most, (rows, groups)) if case.zero is None else np.full((rows, groups), case.zero)
    scales = random.uniform(0.01, 0.02, (rows, groups)).astype(np.float16)
    index = np.arange(columns) // case.group
    if case.order:
        random.shuffle(index)
    spread = scales.astype(np.float64)[:, index]
    if case.form == "mlx":
        biases = random.uniform(-0.2, 0.0, (rows, groups)).astype(np.float16)
        parts = {"weight": pack(codes, 4).view(torch.uint32), "scales": scales, "biases": biases}
        return parts, codes * spread + biases.astype(np.float64)[:, index]
    values = (codes - zeros[:, index]) * spread
    if case.form == "awq":
        packed = {"qweight": pack(in_awq_order(codes.T), 4), "qzeros": pack(in_awq_order(zeros.T), 4)}
        return {**packed, "scales": scales.T.copy()}, values
    packed = {"qweight": pack(codes, case.bits).T.contiguous()}
    packed["qzeros"] = pack((zeros - case.stored_zero).T, case.bits)
    found = {**packed, "scales": scales.T.copy(), "bias": torch.zeros(rows, dtype=torch.float16)}
    return {**found, "g_idx": torch.from_numpy(index.astype(np.int32))} if case.index else found, values


def write_model(source: Path, directory: Path, case: Case) -> dict[str, np.ndarray]:
    """The tiny model with other linear layers; returns their values by name."""
    shutil.copytree(source, directory)
    stored, random = load_file(directory / "model.safetensors"), np.random.default_rng(0)
    values: dict[str, np.ndarray] = {}
    for name in [name for name in stored if "_proj" in name]:
        shape: Any = tuple(stored.pop(name).shape)
        parts, values[name] = write_layer(shape, case, random)
        layer = name.removesuffix(".weight")
        stored |= {f"{layer}.{part}": torch.as_tensor(tensor) for part, tensor in parts.items()}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    describe(directory, case.described, "quantization" if case.form == "mlx" else "quantization_config")
    return values


def describe(directory: Path, described: Mapping[str, Any], key: str = "quantization_config") -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, key: described}))


@pytest.mark.parametrize("name", CASES)
def test_each_layer_has_the_values_of_its_codes(name: str, tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    values = write_model(tiny_model, directory, CASES[name])
    assert is_packed_by_others(directory)
    check_packed(directory, load_meta_model(directory))
    state = load_any(directory, "float32").state_dict()
    assert len(values) == 14
    rounding = 1e-7 if name == "mlx" else 0.0  # of a sum; products of a code and a scale are exact
    for layer, expected in values.items():
        np.testing.assert_allclose(state[layer].double().numpy(), expected, rtol=0, atol=rounding)
    embedding = load_file(tiny_model / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(state["model.embed_tokens.weight"], embedding.float())


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("auto-round", {"packing_format": "auto_round:fp8"}, r"nothing here reads \(quant_method auto-round, packing_"),
        ("auto-round", {"act_bits": 4}, "act_bits 4, bits 4"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format marlin, bits 4"),
        ("mlx", {"mode": "mxfp4"}, "mode mxfp4, bits 4"),
        ("auto-round", {"rotation_config": {"block_size": 32}}, "rotation_config"),
        ("auto-round", {"extra_config": {"model.layers.1.mlp.up_proj": {"act_bits": 8}}}, "nothing here reads"),
        ("auto-round", {"group_size": 16}, "groups in 256 columns, and config.json says groups of 16"),
        ("auto-round", {"group_size": None}, "config.json has no group_size"),
        ("auto-round", {"desc_act": True}, r"out of order \(desc_act\), and no g_idx"),
        ("auto-round", {"bits": 8}, "it has 4 bits a weight, and config.json says 8"),
        ("auto-round", {"bits": "four"}, "bits four"),
        ("gptq", {"pack_dtype": "int64"}, "pack_dtype int64"),
        ("gptq", {"checkpoint_format": "gptq", "format": "gptq_v2"}, "format gptq_v2"),
    ],
)
def test_another_layout_is_refused(
    name: str, change: dict[str, Any], error: str, tiny_model: Path, tmp_path: Path
) -> None:
    case, directory = CASES[name], tmp_path / "theirs"
    write_model(tiny_model, directory, case)
    describe(directory, {**case.described, **change}, "quantization" if name == "mlx" else "quantization_config")
    with pytest.raises(ModelError, match=error):
        check_packed(directory, load_meta_model(directory))


@pytest.mark.parametrize(
    ("left_out", "added", "error"),
    [
        (".mlp.up_proj.scales", "", r"has no model\.layers\.1\.mlp\.up_proj\.weight, which LlamaForCausalLM needs"),
        (".mlp.up_proj.", "", r"has no model\.layers\.1\.mlp\.up_proj\.weight, which LlamaForCausalLM needs"),
        ("", ".mlp.up_proj.weight_scale", r"has model\.layers\.1\.mlp\.up_proj\.weight_scale, which nothing here"),
    ],
)
def test_weights_are_neither_made_up_nor_left_out(
    left_out: str, added: str, error: str, tiny_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "theirs"
    write_model(tiny_model, directory, CASES["gptq"])
    stored = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if not left_out or f"layers.1{left_out}" not in name}
    kept |= {f"model.layers.1{added}": torch.ones(1)} if added else {}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=error):
        load_any(directory, "float32")


def test_a_model_without_any_scale_or_of_a_method_that_nobody_knows_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "theirs"
    write_model(tiny_model, directory, CASES["gptq"])
    describe(directory, {"quant_method": "intel/auto-round", "bits": 4})
    with pytest.raises(ModelError, match="is intel/auto-round, which cannot be loaded here"):
        load_any(directory, "float32")
    describe(directory, CASES["gptq"].described)
    stored = load_file(directory / "model.safetensors")
    unscaled = {name: tensor for name, tensor in stored.items() if not name.endswith(".scales")}
    save_file(unscaled, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="holds no packed weights"):
        load_any(directory, "float32")


@pytest.mark.parametrize("group", [-1, 99])
def test_columns_of_groups_that_are_not_there_are_refused(group: int, tiny_model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    write_model(tiny_model, directory, CASES["gptq"])
    file = directory / "model.safetensors"
    stored = load_file(file)
    first = min(name for name in stored if name.endswith(".g_idx"))
    stored[first][3] = group
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"g_idx is of .* columns in groups {min(group, 0)} to"):
        load_any(directory, "float32")


def test_what_readers_take_for_two_things_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    case = CASES["gptq"]
    write_model(tiny_model, tmp_path / "zero", case)
    file = tmp_path / "zero" / "model.safetensors"
    stored = load_file(file)
    first = min(name for name in stored if name.endswith(".qzeros"))
    save_file({**stored, first: torch.full_like(stored[first], -1)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match="zero points of 0 in version 1 of the layout, which its readers take for two"):
        check_packed(tmp_path / "zero", load_meta_model(tmp_path / "zero"))
    bias = first.replace("qzeros", "bias")
    save_file({**stored, bias: torch.ones_like(stored[bias])}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"has a bias of model\.layers\.0\.\S+, and LlamaForCausalLM has none there"):
        check_packed(tmp_path / "zero", load_meta_model(tmp_path / "zero"))
