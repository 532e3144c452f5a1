"""Tiny random models of every architecture that GGUF export knows, and settings that it refuses."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.tiny_models import tiny_causal_model, tiny_config

# What makes a configuration of an architecture one of those that llama.cpp computes, as published models are.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "qwen2_moe": {"norm_topk_prob": False},
    "qwen3_moe": {"norm_topk_prob": True},
    "olmoe": {"norm_topk_prob": False},
    "starcoder2": {"sliding_window": None},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 4096},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "gemma2": {"sliding_window": 8},
    "cohere2": {
        "sliding_window": 8,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
    "olmo3": {
        "sliding_window": 8,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    },
    "exaone4": {"sliding_window": None, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    "gemma3_text": {
        "sliding_window": 8,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
}

REFUSED = [
    ("mistral", {"sliding_window": 8}, "GGUF has no mistral with a sliding window, and this one has one of 8 tokens"),
    ("llama", {"hidden_act": "gelu"}, "GGUF has no llama with hidden_act gelu: export it as it is usually written"),
    ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "does not know the rotary embedding yarn"),
    ("gemma2", {"query_pre_attn_scalar": 7}, "GGUF has no gemma2 with query_pre_attn_scalar 7"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, r"GGUF has no gemma2 with layer_types \['full_attention'"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, r"GGUF has no smollm3 with no_rope_layers \[1, 0, 1, 0\]"),
    ("starcoder2", {"use_bias": False}, "GGUF has no starcoder2 with use_bias False"),
    ("qwen3", {"attention_bias": True}, "GGUF export does not know attention_bias True of qwen3"),
    ("qwen3_moe", {"norm_topk_prob": False}, "GGUF has no qwen3_moe with norm_topk_prob False"),
    ("qwen2_moe", {"mlp_only_layers": [0]}, r"GGUF has no qwen2_moe with mlp_only_layers \[0\]"),
    ("stablelm", {"use_parallel_residual": True}, "GGUF has no stablelm with use_parallel_residual True"),
    ("exaone4", {"sliding_window": 4096}, "GGUF has no exaone4 with sliding_window 4096"),
    ("olmo3", {"layer_types": ["full_attention"] * 4}, r"GGUF has no olmo3 with layer_types \['full_attention'"),
    ("gemma", {"tie_word_embeddings": False}, "GGUF has no gemma with tie_word_embeddings False"),
]


def tiny_gguf_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """Return a random model in bfloat16, all of whose parameters count, with the vocabulary of the byte tokenizer."""
    tokens = {"vocab_size": 288, "bos_token_id": None, "eos_token_id": 259, "pad_token_id": None}
    config = tiny_config(model_type, **tokens, **_PUBLISHED.get(model_type, {}), **changes)
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = config.head_dim
    model = tiny_causal_model(config)
    for parameter in model.parameters():  # parameters alone: a cast of the rotary buffers would move the logits
        parameter.data = parameter.data.to(torch.bfloat16)
    return model
