"""A GGUF file of rayqd's, read back as the dense model that it stands for.

transformers reads some architectures from GGUF, and not all of what their settings can be. The `gguf` package unpacks
the tensors of any; what the model is beside them stands in the file as its config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.export.gguf import gguf_name, norm_shift, rotated_heads, swap_halves
from rayqd.export.gguf_architectures import ARCHITECTURES
from rayqd.export.gguf_metadata import CONFIG_KEY
from rayqd.export.stacked_experts import read_experts
from rayqd.model.fused_experts import find_fused_experts
from rayqd.model.model_class import auto_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_READ_BY_TRANSFORMERS = ("llama", "qwen2")


def transformers_reads(file: Path) -> bool:
    """Return whether transformers finds the whole model in the file: a file of another writer's, or a plain llama."""
    config = _read_config(GGUFReader(file))
    if config is None:
        return True
    rope = config.get("rope_parameters")
    rope_type = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    is_plain = rope_type == "default" and not (config.get("attention_bias") or config.get("mlp_bias"))
    return is_plain and config["model_type"] in _READ_BY_TRANSFORMERS


def load_gguf(file: Path, *, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
    """Load the dense model with values in `dtype`. Raises ModelError where the file lacks a tensor of it."""
    from transformers import CONFIG_MAPPING

    from rayqd.model.forward.of_model import attention_of

    reader = GGUFReader(file)
    values = _read_config(reader)
    if values is None:
        raise ModelError(f"{file} has no {CONFIG_KEY}: rayqd did not write it")
    config = CONFIG_MAPPING[str(values["model_type"])].from_dict(values)
    with torch.device("meta"):
        plain = auto_class(config).from_config(config)
    return cast(Any, type(plain)).from_pretrained(
        None,
        config=config,
        state_dict=_read_values(reader, plain, dtype),
        dtype=dtype,
        attn_implementation=attention or attention_of(config),
    )


def _read_values(reader: GGUFReader, plain: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    config: Any = plain.config
    architecture = ARCHITECTURES[config.model_type]
    stored = {tensor.name: tensor for tensor in reader.tensors}
    fused = find_fused_experts(plain)
    tied: dict[str, str] = getattr(plain, "all_tied_weights_keys", None) or {}

    def find(name: str) -> str:
        return gguf_name(architecture, config.num_hidden_layers, name) or ""

    def read(name: str) -> NDArray[np.float32]:
        if (in_file := find(name)) not in stored:
            raise ModelError(f"the GGUF file lacks {name}; write it again")
        return dequantize(stored[in_file].data, stored[in_file].tensor_type)

    found: dict[str, Tensor] = {}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        if name in fused:
            values = read_experts(fused[name], lambda matrix: read(f"{matrix}.weight"))
        elif name in tied and find(name) not in stored:
            continue
        else:
            values = read(name).reshape(parameter.shape)
        if (num_heads := rotated_heads(architecture, config, find(name))) is not None:
            values = swap_halves(values, num_heads, back=True)
        values = np.ascontiguousarray(values - np.float32(norm_shift(architecture, name)))
        found[name] = torch.from_numpy(values).to(dtype)
    return found


def _read_config(reader: GGUFReader) -> dict[str, JsonValue] | None:
    field = reader.fields.get(CONFIG_KEY)
    return None if field is None else json.loads(field.contents())
