"""How many bytes of keys and values an engine can use at most, from the model's config alone."""

from __future__ import annotations

import math
from typing import Any

_BLOCK_TOKENS = 16  # vLLM hands out memory for so many tokens of a sequence at a time, on some GPUs for more
_SPARE = 1.05  # what its own bookkeeping takes, a block that stands for none, alignment


def kv_bytes_per_token(model_config: Any, bytes_per_value: int, tensor_parallel: int = 1) -> int | None:
    """Return the bytes that a token's keys and values take over all layers; None for other attention than MHA to MQA.

    `tensor_parallel`: GPUs that divide the heads, of which each has one at least; the bytes are those on one of them.
    `model_config` is transformers'. Layers with a window or without attention need less, so this is the most.
    """
    config = model_config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    layers = getattr(config, "num_hidden_layers", None)
    hidden_size = getattr(config, "hidden_size", None)
    is_plain = not any(hasattr(config, name) for name in ("kv_lora_rank", "layers_block_type", "mamba_d_state"))
    if not (heads and layers and hidden_size and is_plain):
        return None
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden_size // heads
    return 2 * layers * max(1, kv_heads // tensor_parallel) * head_dim * bytes_per_value


def kv_cache_bytes(bytes_per_token: int, context_length: int, num_sequences: int) -> int:
    """Return what `num_sequences` sequences of `context_length` tokens need at a time."""
    blocks = math.ceil(context_length / _BLOCK_TOKENS) + 1
    return math.ceil(_SPARE * num_sequences * blocks * _BLOCK_TOKENS * bytes_per_token)
