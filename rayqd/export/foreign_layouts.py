"""Models in the layouts of GPTQ, AWQ, AutoRound and MLX as others write them, read as the dense weights they stand for.

What rayqd's own layouts have no place for is read here: columns out of order (desc_act), zero points in version 1 of
GPTQ, AutoRound's names for both, MLX's biases where they are no multiples of the scales (as DWQ trains them), layers of
other bits. Values are (code - zero) · scale in float32, where that is exact.

Shapes: N output features, K input features, G groups, b bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ConfigError, ModelError
from rayqd.export.foreign_config import (
    OTHERWISE,
    Packing,
    check_method,
    described_quantization,
    find_packing,
    is_packed,
    read_config_values,
)
from rayqd.export.layout_files import check_first_layer, load_dense, stored_tensors
from rayqd.export.layouts import LayoutKind
from rayqd.export.load import is_export, load_export, read_kind
from rayqd.model.forward.check import check_mode
from rayqd.model.load import device, load_meta_model, load_model, torch_dtype
from rayqd.model.source_weights import match_names, read_stored_tensors
from rayqd.quant.packing.awq import unpack_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BITS = (2, 4, 8)


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
    if is_export(directory):
        return load_export(directory, dtype)
    check_method(described_quantization(read_config_values(directory)), directory)
    return load_model(directory, dtype)


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
    layer, where one is packed in another way, where the model needs more, and where a layer has what nothing reads.
    """
    packing = find_packing(directory)
    dense = dict(stored_tensors(directory, prefix))
    shapes = _shapes(model, dense)
    layers = [name.removesuffix(".scales") for name in dense if name.endswith(".scales")]
    if not layers:
        raise ModelError(f"{directory} holds no packed weights (*.safetensors with scales)")
    for layer in layers:
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
    if not prefix:
        _check_whole(directory, model, dense)
    return dense


def _check_whole(directory: Path, model: PreTrainedModel, dense: Mapping[str, Tensor]) -> None:
    """Raise ModelError where transformers would make weights up, or leave out what a layer computes with."""
    names, kind = match_names(model, dense), type(model).__name__
    if names.missing:
        raise ModelError(
            f"{directory} has no {min(names.missing)}, which {kind} needs: it is not all of the model, or packed in a "
            f"way that nothing here reads; {OTHERWISE}"
        )
    used = [*names.renamed.values(), *(name for parts in names.converted.values() for name in parts)]
    layers = {name.rpartition(".")[0] for name in used}
    left = [name for name in names.unused if name.rpartition(".")[0] in layers]
    if left:
        raise ModelError(
            f"{directory} has {min(left)}, which nothing here reads, and {kind} would be another model without it; "
            f"{OTHERWISE}"
        )


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


def _unpack_gptq(parts: Mapping[str, Tensor], shape: tuple[int, int] | None, packing: Packing) -> Tensor:
    """Of qweight int32 [K·b/32, N], qzeros int32 [G, N·b/32], scales [G, N], g_idx [K] if there."""
    packed, scales = parts["qweight"], parts["scales"].float().T
    columns = shape[1] if shape else len(packed) * 32 // packing.bits
    bits = _bits(len(packed) * 32, columns, packing)
    zeros = _numbers(parts["qzeros"], bits)[:, : len(scales)].T
    if packing.zero_shift and bool((zeros == (1 << bits) - 1).any()):
        raise ValueError("it has zero points of 0 in version 1 of the layout, which its readers take for two things")
    groups = parts.get("g_idx")
    if groups is None and not packing.is_ordered:
        raise ValueError("its columns are out of order (desc_act), and no g_idx says how")
    groups = _in_order(columns, scales.shape[1], packing) if groups is None else groups.long()
    if len(groups) != columns or not bool(((groups >= 0) & (groups < scales.shape[1])).all()):
        raise ValueError(f"g_idx is of {len(groups)} columns in groups {int(groups.min())} to {int(groups.max())}")
    codes = _numbers(packed.T.contiguous(), bits)[:, :columns]
    return (codes - (zeros + packing.zero_shift)[:, groups]) * scales[:, groups]


def _unpack_awq(parts: Mapping[str, Tensor], shape: tuple[int, int] | None, packing: Packing) -> Tensor:
    """Of qweight int32 [K, N/8], qzeros int32 [G, N/8], scales [G, N]: all packed along the outputs."""
    scales = parts["scales"].float()
    if packing.bits != 4:
        raise ValueError(f"AWQ of {packing.bits} bits")
    codes, zeros = (unpack_order(_numbers(parts[part], 4)) for part in ("qweight", "qzeros"))
    groups = _in_order(len(codes), len(scales), packing)
    return ((codes - zeros[groups]) * scales[groups]).T.contiguous()


def _unpack_mlx(parts: Mapping[str, Tensor], shape: tuple[int, int] | None, packing: Packing) -> Tensor:
    """Of weight uint32 [N, K·b/32], scales [N, G] and biases [N, G]."""
    packed, scales, biases = parts["weight"].view(torch.int32), parts["scales"].float(), parts["biases"].float()
    if packed.dim() != 2:
        raise ValueError("stacked experts")
    columns = shape[1] if shape else packed.shape[1] * 32 // packing.bits
    codes = _numbers(packed, _bits(packed.shape[1] * 32, columns, packing))
    groups = _in_order(columns, scales.shape[1], packing)
    return codes * scales[:, groups] + biases[:, groups]


def _bits(stored: int, columns: int, packing: Packing) -> int:
    """Return the bits of a code, of which a row has `columns` in so many `stored` bits. Raises ValueError."""
    bits = stored // columns
    if bits not in _BITS or stored != bits * columns:
        raise ValueError(f"{columns} columns in {stored} bits, which are not 2, 4 or 8 each")
    if bits != packing.bits and not packing.has_exceptions:
        raise ValueError(f"it has {bits} bits a weight, and config.json says {packing.bits}")
    return bits


def _in_order(columns: int, num_groups: int, packing: Packing) -> Tensor:
    """Return each column's group, the last of which may be shorter. Raises ValueError."""
    if packing.group_size is None:
        raise ValueError("config.json has no group_size")
    size = packing.group_size if packing.group_size > 0 else columns
    if -(-columns // size) != num_groups and packing.has_exceptions and columns % num_groups == 0:
        size = columns // num_groups
    if -(-columns // size) != num_groups:
        raise ValueError(f"it has {num_groups} groups in {columns} columns, and config.json says groups of {size}")
    return torch.arange(columns) // size


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
