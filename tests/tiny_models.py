"""Random models of a few thousand weights, of every causal architecture that the installed transformers has."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rayqd.model.tiny import make_tiny
from rayqd.survey.architectures import default_config


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return a tiny configuration of an architecture, with its default settings but for `changes`.

    `changes` of sizes are made after it was shrunk. Raises what its class raises where it cannot be made so small.
    """
    config = make_tiny(default_config(model_type))
    return type(config).from_dict({**config.to_dict(), **changes})


def tiny_causal_model(config: PreTrainedConfig, seed: int = 0, *, attention: str = "eager") -> PreTrainedModel:
    """Return a random model in float32 all of whose parameters count: norms, biases and sinks are random too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
