"""Tiny copies of configurations: small, and with all that makes an architecture what it is."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from rayqd.model.tiny import ORIGINAL_LENGTH, WINDOW, make_tiny
from tests.tiny_models import tiny_causal_model, tiny_config

_SPREAD = ["llama", "gemma3_text", "gpt_oss", "deepseek_v3", "falcon_h1", "bamba", "jamba", "lfm2", "stablelm", "bloom"]


@pytest.mark.parametrize("model_type", _SPREAD)
def test_a_tiny_copy_runs_and_has_few_weights(model_type: str) -> None:
    model = tiny_causal_model(tiny_config(model_type))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits
    assert logits.shape == (1, 40, 128)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_every_kind_of_layer_stays() -> None:
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = CONFIG_MAPPING["gemma3_text"](layer_types=kinds * 5, num_hidden_layers=30)
    tiny = make_tiny(config)
    assert set(tiny.layer_types) == {"sliding_attention", "full_attention"}
    assert tiny.num_hidden_layers == len(tiny.layer_types) <= 4


def test_multipliers_and_caps_stay_and_windows_shrink() -> None:
    config = CONFIG_MAPPING["gemma2"](final_logit_softcapping=30.0, attn_logit_softcapping=50.0, sliding_window=4096)
    tiny = make_tiny(config)
    assert (tiny.final_logit_softcapping, tiny.attn_logit_softcapping) == (30.0, 50.0)
    assert tiny.sliding_window == WINDOW
    assert make_tiny(CONFIG_MAPPING["falcon_h1"](lm_head_multiplier=0.1)).lm_head_multiplier == 0.1


def test_the_length_that_a_rotary_embedding_was_trained_for_shrinks_with_its_factors() -> None:
    factors = [1.0 + i for i in range(48)]  # of 96 channels
    scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 1e4}
    config = CONFIG_MAPPING["phi3"](
        rope_parameters=scaling, original_max_position_embeddings=4096, max_position_embeddings=131072
    )
    rope = make_tiny(config).rope_parameters
    assert rope["original_max_position_embeddings"] == ORIGINAL_LENGTH
    assert (rope["long_factor"][0], rope["long_factor"][-1]) == (1.0, 48.0)
    assert len(rope["long_factor"]) == 8  # half of a head's 16 channels


@pytest.mark.parametrize(("heads", "key_value_heads"), [(2, 2), (2, 1), (3, 3), (1, 1), (9, 3)])
def test_a_model_with_fewer_heads_than_the_copy_has_runs_too(heads: int, key_value_heads: int) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_value_heads, "head_dim": 64}
    tiny = make_tiny(CONFIG_MAPPING["qwen3"](**sizes))
    assert (tiny.num_key_value_heads == tiny.num_attention_heads) == (heads == key_value_heads)
    assert tiny.num_attention_heads % tiny.num_key_value_heads == 0
    with torch.no_grad():
        assert tiny_causal_model(tiny)(input_ids=torch.arange(3, 43)[None]).logits.isfinite().all()
