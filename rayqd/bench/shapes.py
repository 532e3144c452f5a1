"""Models of known shapes with random weights, made where they are measured: no download, and speed does not mind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rayqd.errors import ConfigError
from rayqd.model.load import device, torch_dtype
from rayqd.model.packed_attention import NAME as ATTENTION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_QWEN3: dict[str, Any] = {"model_type": "qwen3", "vocab_size": 151_936, "head_dim": 128, "num_key_value_heads": 8}

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-4b": _QWEN3
    | {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": _QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}


def random_model(shape: str, dtype: str) -> PreTrainedModel:
    """A model of one of SHAPES on this process's device, with the attention that rayqd trains with."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if shape not in SHAPES:
        raise ConfigError(f"flag --shape={shape}: must be one of {', '.join(SHAPES)}")
    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[shape])
    with device():
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(dtype), attn_implementation=ATTENTION)
    return model.eval().requires_grad_(False)
