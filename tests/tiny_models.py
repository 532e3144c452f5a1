"""Random models of a few thousand weights, of every causal architecture that the installed transformers has."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rayqd.model.tiny import make_tiny

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


def causal_model_types() -> list[str]:
    """Return the names of all causal architectures of the installed transformers."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return a tiny configuration of an architecture, with its default settings but for `changes`.

    `changes` of sizes are made after it was shrunk. Raises what its class raises where it cannot be made so small.
    """
    config = make_tiny(CONFIG_MAPPING[model_type](**_PUBLISHED.get(model_type, {})))
    return type(config).from_dict({**config.to_dict(), **changes})


def tiny_causal_model(config: PreTrainedConfig, seed: int = 0, *, attention: str = "eager") -> PreTrainedModel:
    """Return a random model in float32 all of whose parameters count: norms, biases and sinks are random too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
