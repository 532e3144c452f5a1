"""The causal architectures of the installed transformers, and a tiny random checkpoint of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rayqd.console.quiet import quiet_libraries
from rayqd.driver.export_check import write_tiny_checkpoint
from rayqd.errors import ModelError
from rayqd.model.forward.probe import make_random

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MOE = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
# What a configuration class leaves open and every published model of it says.
_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": _MOE,
    "dots1": _MOE,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 192, "num_key_value_heads": 8},
    "bert": {"is_decoder": True},
}


def causal_architectures() -> list[str]:
    """Return the model types of all causal architectures of the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def class_name(model_type: str) -> str:
    """Return the name of the class that transformers loads a causal model of this type as."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def default_config(model_type: str) -> PreTrainedConfig:
    """Return the configuration of an architecture where nothing is said. Raises ModelError where it has none."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[model_type](**_PUBLISHED.get(model_type, {}))
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ModelError(
            f"transformers makes no {model_type} configuration of its own ({reason}): give a directory with config.json"
        ) from error


@torch.no_grad()
def write_checkpoint(config: PreTrainedConfig, directory: Path) -> None:
    """Write a tiny random float32 model of `config` with a tokenizer of a few words.

    Channels of its embedding differ in size as those of trained models do, so that there is something to scale.
    """
    with quiet_libraries():
        model = make_random(config)
        _spread_channels(model)
        write_tiny_checkpoint(model, directory)


def _spread_channels(model: PreTrainedModel) -> None:
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        width = embedding.weight.shape[1]
        embedding.weight.mul_(torch.randn(width, generator=torch.Generator().manual_seed(2)).exp())
