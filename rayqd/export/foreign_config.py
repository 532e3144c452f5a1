"""What config.json says of layers that others packed: GPTQ, AWQ, AutoRound and MLX, and which of them are read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rayqd.errors import ModelError
from rayqd.export.layout_files import is_mlx

_ROTATIONS = ("rotation_config", "spinquant_config")  # AutoRound's: the model computes with them beside its weights
OTHERWISE = "write it as compressed-tensors, or with dequantized 16-bit weights"
_AUTO_ROUND_METHOD = "auto-round"
# https://github.com/intel/auto-round, auto_round/inference/backend.py: which store a zero point less one
_AUTO_ROUND: Mapping[str, tuple[Literal["gptq", "awq"], int]] = {
    "auto_round:auto_gptq": ("gptq", 1),
    "auto_round:gptqmodel": ("gptq", 0),
    "auto_round": ("gptq", 0),
    "auto_round:auto_awq": ("awq", 0),
}


@dataclass(frozen=True, slots=True)
class Packing:
    """How the layers of a checkpoint lie in its files."""

    kind: Literal["gptq", "awq", "mlx"]
    bits: int  # of a layer whose shape does not tell
    group_size: int | None  # of a layer that has no other; -1: all of a row; None: nothing is said
    has_exceptions: bool = False  # layers of other bits or group sizes, which config.json names
    is_ordered: bool = True  # columns lie in the order of their groups, unless g_idx says otherwise
    zero_shift: int = 0  # what is added to a stored zero point


def is_packed(directory: Path) -> bool:
    """Return whether `directory` is in one of the layouts that rayqd unpacks, whoever wrote it."""
    values = read_config_values(directory)
    method = described_quantization(values).get("quant_method")
    return is_mlx(cast(Any, values)) or method in ("gptq", "awq", _AUTO_ROUND_METHOD)


def check_method(described: Mapping[str, Any], directory: Path) -> None:
    """Raise ModelError where transformers knows no such quantization: it would leave it out, and make weights up."""
    from transformers import __version__
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = described.get("quant_method")
    is_bitsandbytes = described.get("load_in_8bit") or described.get("load_in_4bit")
    if described and not is_bitsandbytes and method not in cast(Any, AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise ModelError(
            f"{directory} is {method or 'quantized in no named format'}, which cannot be loaded here: transformers "
            f"{__version__} knows no such format; {OTHERWISE}"
        )


def read_config_values(directory: Path) -> dict[str, Any]:
    """Read config.json; nothing where there is none, as beside a GGUF."""
    try:
        return json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def described_quantization(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what config.json says of the quantization; nothing where it says nothing."""
    return values["quantization"] if is_mlx(cast(Any, values)) else values.get("quantization_config") or {}


def find_packing(directory: Path) -> Packing:
    """Return how config.json says that layers are packed. Raises ModelError where it is in none of these ways."""
    values = read_config_values(directory)
    described = described_quantization(values)
    found = _find_kind(described, is_mlx=is_mlx(cast(Any, values)))
    bits, group_size = described.get("bits", 4), described.get("group_size", described.get("q_group_size"))
    rotated = [name for name in _ROTATIONS if values.get(name) or described.get(name)]
    if found and isinstance(bits, int) and isinstance(group_size, int | None) and not rotated:
        kind, shift = found
        exceptions = [described.get(name) for name in ("extra_config", "dynamic")]
        if kind == "mlx":
            exceptions += [value for value in described.values() if isinstance(value, dict)]
        is_ordered = not described.get("desc_act")
        return Packing(kind, bits, group_size, any(exceptions), is_ordered, shift)
    names = (
        *("quant_method", "packing_format", "checkpoint_format", "format", "version", "mode", "data_type"),
        *("act_bits", "bits", "group_size", "pack_dtype", *rotated),
    )
    said = ", ".join(f"{name} {described[name]}" for name in names if described.get(name) is not None)
    raise ModelError(
        f"{directory} is packed in a way that nothing here reads ({said or 'nothing is said'}): {OTHERWISE}"
    )


def _find_kind(described: Mapping[str, Any], *, is_mlx: bool) -> tuple[Literal["gptq", "awq", "mlx"], int] | None:
    """Return the kind of layout, and what is added to its zero points; None where it is none of these."""
    method = described.get("quant_method")
    if is_mlx:
        return ("mlx", 0) if described.get("mode", "affine") == "affine" else None
    if str(described.get("pack_dtype", "int32")).removeprefix("torch.") != "int32":
        return None
    if method == _AUTO_ROUND_METHOD:
        every = [
            described,
            *(each for each in (described.get("extra_config") or {}).values() if isinstance(each, dict)),
        ]
        computes_dense = all(
            each.get("data_type", "int") == "int" and (each.get("act_bits") or 16) >= 16 for each in every
        )
        return _AUTO_ROUND.get(str(described.get("packing_format"))) if computes_dense else None
    if method == "awq":
        return ("awq", 0) if str(described.get("version", "gemm")).lower() == "gemm" else None
    forms = {described[name] for name in ("checkpoint_format", "format") if described.get(name)} or {"gptq"}
    if method == "gptq" and len(forms) == 1 and forms <= {"gptq", "gptq_v2"}:
        return ("gptq", 1 if forms == {"gptq"} else 0)
    return None
