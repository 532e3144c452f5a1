"""Models in the layouts of GPTQ, AWQ, AutoRound and MLX as others write them, read as the dense weights they stand for.

What rayqd's own layouts have no place for is read here: columns out of order (desc_act), zero points in version 1 of
GPTQ, AutoRound's names for both, MLX's biases where they are no multiples of the scales (as DWQ trains them), layers of
other bits. Values are (code - zero) · scale in float32, where that is exact.

Shapes: N output features, K input features, G groups, b bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ConfigError, ModelError
from rayqd.export.layout_files import check_first_layer, is_mlx, load_dense, stored_tensors
from rayqd.export.layouts import LayoutKind
from rayqd.export.load import is_export, load_export, read_kind
from rayqd.model.forward.check import check_mode
from rayqd.model.load import device, load_meta_model, load_model, torch_dtype
from rayqd.model.source_weights import match_names, read_stored_tensors
from rayqd.quant.packing.awq import unpack_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BITS = (2, 4, 8)
_AUTO_ROUND_METHOD = "auto-round"
# https://github.com/intel/auto-round, auto_round/inference/backend.py: which store a zero point less one
_AUTO_ROUND: Mapping[str, tuple[Literal["gptq", "awq"], int]] = {
    "auto_round:auto_gptq": ("gptq", 1),
    "auto_round:gptqmodel": ("gptq", 0),
    "auto_round": ("gptq", 0),
    "auto_round:auto_awq": ("awq", 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How the layers of a checkpoint lie in its files."""

    kind: Literal["gptq", "awq", "mlx"]
    bits: int  # of a layer whose shape does not tell
    zero_shift: int = 0  # what is added to a stored zero point


def is_packed(directory: Path) -> bool:
    """Return whether `directory` is in one of the layouts that rayqd unpacks, whoever wrote it."""
    values = _read_config(directory)
    method = _described(values).get("quant_method")
    return is_mlx(cast(Any, values)) or method in ("gptq", "awq", _AUTO_ROUND_METHOD)


def is_packed_by_others(directory: Path) -> bool:
    """Return whether `directory` has packed layers that `load_export` does not read, and this file may."""
    if not is_packed(directory):
        return False
    try:
        kind = read_kind(directory)
    except ConfigError:  # AutoRound's own
        return True
    try:
        check_first_layer(directory, cast("LayoutKind", kind))
    except ModelError:
        return True
    return False


def load_any(directory: Path, dtype: str) -> PreTrainedModel:
    """Load a model of rayqd's or of others, its layers as its files say. Raises ModelError where nothing here does."""
    if is_packed_by_others(directory):
        return _load(directory, dtype)
    load = load_export if is_export(directory) else load_model
    return load(directory, dtype)


def check_packed(directory: Path, model: PreTrainedModel) -> None:
    """Raise ModelError where the first packed layer cannot be read; `model` has the shapes alone."""
    if not is_packed_by_others(directory):
        return
    layers = [name.removesuffix(".scales") for name in read_stored_tensors(directory) if name.endswith(".scales")]
    if not layers:
        raise ModelError(f"{directory} holds no packed weights (*.safetensors with scales)")
    read_foreign_values(directory, model, f"{layers[0]}.")


def read_foreign_values(directory: Path, model: PreTrainedModel, prefix: str = "") -> dict[str, Tensor]:
    """Read a checkpoint as dense tensors: of a packed layer `name.weight` [N, K] in float32.

    `model` has the shapes; with a `prefix` only those are read whose names begin with it. Raises ModelError, naming the
    layer, where one is packed in another way.
    """
    packing = _find_packing(directory)
    dense = dict(stored_tensors(directory, prefix))
    shapes = _shapes(model, dense)
    for layer in [name.removesuffix(".scales") for name in dense if name.endswith(".scales")]:
        parts = {part: dense.pop(f"{layer}.{part}") for part in _PARTS[packing.kind] if f"{layer}.{part}" in dense}
        try:
            dense[f"{layer}.weight"] = _UNPACK[packing.kind](parts, shapes.get(layer), packing)
        except (ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{directory} is packed in a way that rayqd does not read: {layer}: {error}") from error
        bias = dense.get(f"{layer}.bias")
        if bias is not None and f"{layer}.bias" in shapes.unused and not bool(bias.any()):
            del dense[f"{layer}.bias"]  # AutoGPTQ's, of a layer that has none
        elif bias is not None and f"{layer}.bias" in shapes.unused:
            raise ModelError(f"{directory} has a bias of {layer}, and {type(model).__name__} has none there")
    return dense


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shapes:
    of_layers: Mapping[str, tuple[int, int]]
    unused: frozenset[str]  # names of tensors that the model does not ask for

    def get(self, layer: str) -> tuple[int, int] | None:
        return self.of_layers.get(layer)


def _shapes(model: PreTrainedModel, dense: Mapping[str, Tensor]) -> _Shapes:
    layers = [name.removesuffix(".scales") for name in dense if name.endswith(".scales")]
    names = match_names(model, {*dense, *(f"{layer}.weight" for layer in layers)})
    state = cast("Mapping[str, Tensor]", model.state_dict())
    ours = {source: name for name, source in names.renamed.items()}
    known = {layer: tuple(state[ours[f"{layer}.weight"]].shape) for layer in layers if f"{layer}.weight" in ours}
    return _Shapes(of_layers=cast(Any, known), unused=frozenset(names.unused))


def _load(directory: Path, dtype: str) -> PreTrainedModel:
    with quiet_libraries():
        values = read_foreign_values(directory, load_meta_model(directory))
        model = load_dense(directory, values, dtype=torch_dtype(dtype))
    model.eval().requires_grad_(False)
    model.to(device())  # pyright: ignore[reportArgumentType]
    check_mode(model)
    return model


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):  # a GGUF has none
        return {}


def _described(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values["quantization"] if is_mlx(cast(Any, values)) else values.get("quantization_config") or {}


def _find_packing(directory: Path) -> Packing:
    """Return how config.json says that layers are packed. Raises ModelError where it is in none of these ways."""
    values = _read_config(directory)
    described = _described(values)
    method, bits = described.get("quant_method"), int(described.get("bits", 4))
    if is_mlx(cast(Any, values)):
        if described.get("mode", "affine") == "affine":
            return Packing(kind="mlx", bits=bits)
    elif method == _AUTO_ROUND_METHOD:
        form = str(described.get("packing_format"))
        is_weights_alone = described.get("data_type", "int") == "int" and (described.get("act_bits") or 16) >= 16
        if form in _AUTO_ROUND and is_weights_alone:
            kind, shift = _AUTO_ROUND[form]
            return Packing(kind=kind, bits=bits, zero_shift=shift)
    elif method == "awq" and str(described.get("version", "gemm")).lower() == "gemm":
        return Packing(kind="awq", bits=bits)
    elif method == "gptq" and (form := described.get("checkpoint_format", "gptq")) in ("gptq", "gptq_v2"):
        return Packing(kind="gptq", bits=bits, zero_shift=1 if form == "gptq" else 0)
    names = ("quant_method", "packing_format", "checkpoint_format", "version", "mode", "data_type", "act_bits", "bits")
    said = ", ".join(f"{name} {described[name]}" for name in names if described.get(name) is not None)
    raise ModelError(
        f"{directory} is packed in a way that nothing here reads ({said}): write it as compressed-tensors, or with "
        "dequantized 16-bit weights"
    )


def _unpack_gptq(parts: Mapping[str, Tensor], shape: tuple[int, int] | None, packing: Packing) -> Tensor:
    """Of qweight int32 [K·b/32, N], qzeros int32 [G, N·b/32], scales [G, N], g_idx [K] if there."""
    packed, scales = parts["qweight"], parts["scales"].float().T
    columns = shape[1] if shape else len(packed) * 32 // packing.bits
    bits = _bits(len(packed) * 32, columns)
    zeros = _numbers(parts["qzeros"], bits)[:, : len(scales)].T
    if packing.zero_shift and bool((zeros == (1 << bits) - 1).any()):
        raise ValueError("it has zero points of 0 in version 1 of the layout, which its readers take for two things")
    groups = parts.get("g_idx")
    groups = _in_order(columns, scales.shape[1]) if groups is None else groups.long()
    codes = _numbers(packed.T.contiguous(), bits)[:, :columns]
    return (codes - (zeros + packing.zero_shift)[:, groups]) * scales[:, groups]


def _unpack_awq(parts: Mapping[str, Tensor], shape: tuple[int, int] | None, packing: Packing) -> Tensor:
    """Of qweight int32 [K, N/8], qzeros int32 [G, N/8], scales [G, N]: all packed along the outputs."""
    scales = parts["scales"].float()
    if packing.bits != 4:
        raise ValueError(f"AWQ of {packing.bits} bits")
    codes, zeros = (unpack_order(_numbers(parts[part], 4)) for part in ("qweight", "qzeros"))
    groups = _in_order(len(codes), len(scales))
    return ((codes - zeros[groups]) * scales[groups]).T.contiguous()


def _unpack_mlx(parts: Mapping[str, Tensor], shape: tuple[int, int] | None, packing: Packing) -> Tensor:
    """Of weight uint32 [N, K·b/32], scales [N, G] and biases [N, G]."""
    packed, scales, biases = parts["weight"].view(torch.int32), parts["scales"].float(), parts["biases"].float()
    if packed.dim() != 2:
        raise ValueError("stacked experts")
    columns = shape[1] if shape else packed.shape[1] * 32 // packing.bits
    codes = _numbers(packed, _bits(packed.shape[1] * 32, columns))
    groups = _in_order(columns, scales.shape[1])
    return codes * scales[:, groups] + biases[:, groups]


def _bits(stored: int, columns: int) -> int:
    """Return the bits of a code, of which a row has `columns` in so many `stored` bits. Raises ValueError."""
    bits = stored // columns
    if bits not in _BITS or stored != bits * columns:
        raise ValueError(f"{columns} columns in {stored} bits, which are not 2, 4 or 8 each")
    return bits


def _in_order(columns: int, num_groups: int) -> Tensor:
    if columns % num_groups:
        raise ValueError(f"{columns} columns in {num_groups} groups")
    return torch.arange(columns) // (columns // num_groups)


def _numbers(packed: Tensor, bits: int) -> Tensor:
    """Return the numbers of int32 [R, C], the first lowest: [R, C·32/b] int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)


_PARTS = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "mlx": ("weight", "scales", "biases"),
}
_UNPACK: Mapping[str, Callable[[Mapping[str, Tensor], tuple[int, int] | None, Packing], Tensor]] = {
    "gptq": _unpack_gptq,
    "awq": _unpack_awq,
    "mlx": _unpack_mlx,
}
