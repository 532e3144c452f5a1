"""The bytes of keys and values, held against those that transformers keeps of a real forward pass."""

from pathlib import Path

import torch
from transformers import DeepseekV3Config, DynamicCache

from rayqd.model.load import load_model
from rayqd.rollout.kv_cache import kv_bytes_per_token, kv_cache_bytes


def test_a_token_s_bytes_are_those_of_transformers_own_cache(tiny_model: Path) -> None:
    model = load_model(tiny_model, "bfloat16")
    cache = DynamicCache(config=model.config)
    ids = torch.arange(7)[None]
    model.set_attn_implementation("eager")
    model(ids, past_key_values=cache, use_cache=True, lengths=[ids.shape[1]])
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_bytes_per_token(model.config, 2) == kept / 7


def test_whole_blocks_and_one_more_are_planned_for_every_sequence() -> None:
    assert kv_cache_bytes(100, 33, 4) >= 4 * (48 + 16) * 100  # 33 tokens fill three blocks of 16
    assert kv_cache_bytes(100, 33, 4) < 1.1 * 4 * (48 + 16) * 100


def test_attention_of_another_kind_is_left_to_vllm() -> None:
    assert kv_bytes_per_token(DeepseekV3Config(), 2) is None
