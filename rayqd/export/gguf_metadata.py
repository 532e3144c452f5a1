"""What a GGUF file says of a model beside its tensors: hyperparameters, as llama.cpp's converter writes them.

Beside llama.cpp's keys there is one of ours with the whole config.json, so that the file can be read back as the model
that transformers knows, whatever its architecture.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType, RopeScalingType
from numpy.typing import NDArray
from pydantic import JsonValue

from rayqd.export.gguf_architecture import GGUFArchitecture, head_dim_of, rope_of, rotary_dim_of

CONFIG_KEY = "rayqd.config"


def add_metadata(writer: GGUFWriter, config: Any, architecture: GGUFArchitecture) -> None:
    """Add all that llama.cpp asks for of the architecture."""
    writer.add_type("model")
    if name := getattr(config, "name_or_path", ""):
        writer.add_name(Path(name).name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_key_length(head_dim_of(config))
    writer.add_value_length(head_dim_of(config))
    _add_norms(writer, config)
    _add_rope(writer, config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    writer.add_quantization_version(2)
    if architecture.add is not None:
        architecture.add(writer, config)
    writer.add_string(CONFIG_KEY, json.dumps(_plain_config(config)))


def rope_factors(config: Any) -> NDArray[np.float32] | None:
    """Return what the rotary frequencies of a Llama 3.1 are divided by, [rotary / 2]; None for other rotations.

    The formula is transformers' `_compute_llama3_parameters`.
    """
    rope = rope_of(config)
    if rope.get("rope_type", "default") != "llama3":
        return None
    size = rotary_dim_of(config)
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    original, low, high = (
        float(rope[key]) for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    smooth = ((original / wavelengths - low) / (high - low)).clamp(0, 1)  # 0 for long waves, 1 for short ones
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).float().numpy()


def _add_norms(writer: GGUFWriter, config: Any) -> None:
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for key in ("layer_norm_eps", "norm_epsilon", "norm_eps"):
        if hasattr(config, key):
            writer.add_layer_norm_eps(getattr(config, key))


def _add_rope(writer: GGUFWriter, config: Any) -> None:
    rope = rope_of(config)
    writer.add_rope_dimension_count(rotary_dim_of(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _plain_config(config: Any) -> dict[str, JsonValue]:
    values = config.to_dict()
    return {key: value for key, value in values.items() if key not in ("quantization_config", "_name_or_path")}
