"""Numbers of GPUs that divide a model, and those that do not. The sizes are those of the configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.rollout.kernels import find_layer_shapes
from rayqd.rollout.kv_cache import kv_bytes_per_token
from rayqd.rollout.parallel import check_tensor_parallel, divided_sides

TEXT = Qwen3Config(
    hidden_size=384,
    intermediate_size=768,
    num_hidden_layers=1,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=128,
)


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(TEXT)


def config(count: int, lmbda: float = 1.0) -> Config:
    return Config.model_validate({"rollout": {"tensor_parallel": count}, "distill": {"lmbda": lmbda}})


@pytest.mark.parametrize("count", [1, 2])
def test_what_divides_heads_and_layers_is_taken(count: int, model: Any) -> None:
    check_tensor_parallel(model, config(count))


def test_what_does_not_is_refused_with_what_does(model: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        check_tensor_parallel(model, config(4))
    # 6 heads, 384 and 128 outputs of queries and keys, 768 of the gate: 1 and 2 divide them all.
    assert str(refused.value) == (
        "rollout.tensor_parallel=4 does not divide its attention heads (6): take 1 or 2 for this model"
    )


def test_nobody_asks_where_nothing_is_sampled(model: Any) -> None:
    check_tensor_parallel(model, config(4, lmbda=0.0))


def test_sides_are_those_of_the_models_own_plan_and_both_without_one(model: Any) -> None:
    layers = {
        name: divided_sides(model, name) for name in map(first_name, find_layer_shapes(model, config(1).quant).values())
    }
    sides = {name.rpartition(".")[2]: side for name, side in layers.items()}
    assert sides == {"q_proj": ("out",), "o_proj": ("in",), "gate_proj": ("out",), "down_proj": ("in",)}
    assert divided_sides(model, "model.layers.0.conv.in_proj") == ("in", "out")


def first_name(names: str) -> str:
    return names.partition(" + ")[0]


def test_keys_and_values_are_divided_down_to_one_head() -> None:
    one = kv_bytes_per_token(TEXT, 2)
    assert one == 2 * 1 * 2 * 64 * 2  # keys and values, layers, heads, width, bytes
    assert kv_bytes_per_token(TEXT, 2, tensor_parallel=2) == one // 2 == kv_bytes_per_token(TEXT, 2, tensor_parallel=6)
