"""A teacher over several devices. Without GPUs, Accelerate's hooks carry layers from the disk: the same hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rayqd.errors import PlacementError
from rayqd.model.hidden_states import completion_states
from rayqd.model.load import load_model
from rayqd.model.spread import place_layers
from rayqd.types import Rollout

LAYER = 4 * 64 * 64 + 3 * 64 * 128  # weights of a decoder layer, less its norms


@pytest.fixture
def model() -> Any:
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 64}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=8, tie_word_embeddings=False, **settings))


def rollout(length: int) -> Rollout:
    ids = np.random.default_rng(length).integers(3, 120, length, dtype=np.int32)
    fields: dict[str, Any] = {"step": 0, "index": 0, "on_policy": False, "policy_version": 0}
    return Rollout(prompt_ids=ids[: length // 2], completion_ids=ids[length // 2 :], **fields)


def test_layers_go_to_the_gpus_in_order_and_in_equal_parts(model: Any) -> None:
    places = place_layers(model, "bfloat16", gpus=[10**6, 10**6], host=0)
    of_layers = [next(places[key] for key in places if f"model.layers.{i}".startswith(key)) for i in range(8)]
    assert of_layers == sorted(of_layers)
    assert set(of_layers) == set(places.values()) == {0, 1}
    assert 3 <= of_layers.count(0) <= 5


def test_what_gpus_have_no_room_for_lies_in_the_host_s_memory_only_where_it_may(model: Any) -> None:
    few = [6 * 2 * LAYER]
    assert set(place_layers(model, "bfloat16", gpus=few, host=10**9).values()) == {0, "cpu"}
    with pytest.raises(PlacementError, match=r"raise teacher\.gpus_per_worker, or set teacher\.offload$"):
        place_layers(model, "bfloat16", gpus=few, host=0)
    with pytest.raises(PlacementError, match=r"on 1 GPU\(s\) and 0\.0 GiB in the host's memory: raise teacher\.gpus_"):
        place_layers(model, "bfloat16", gpus=few, host=2 * LAYER)


def test_a_model_whose_layers_are_carried_to_where_they_compute_gives_the_same_bits(tiny_model: Path) -> None:
    rollouts = [rollout(length) for length in (12, 31, 7)]
    whole = load_model(tiny_model, "float32")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    spread = load_model(tiny_model, "float32", {**places, "model.layers.0": "cpu", "model.layers.1": "disk"})
    assert any(parameter.is_meta for parameter in spread.parameters()), "nothing lies elsewhere"
    with torch.inference_mode():
        assert torch.equal(completion_states(spread, rollouts), completion_states(whole, rollouts))
