"""Routers and gates stay in 16 bits: what they are decides, not their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayqd.config.sections import QuantConfig
from rayqd.quant import quantizable_layers
from rayqd.quant.routers import find_routers
from tests.model.small_architectures import make_model


@pytest.mark.parametrize(
    ("model_type", "routers"),
    [
        ("llama", []),
        ("mixtral", ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]),
        ("qwen2_moe", [f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("gate", "shared_expert_gate")]),
        ("deepseek_v3", ["model.layers.1.mlp.gate"]),  # its first layer is dense
        ("gpt_oss", ["model.layers.0.mlp.router", "model.layers.1.mlp.router"]),
        ("jamba", ["model.layers.1.feed_forward.router"]),
    ],
)
def test_routers_of_architectures(model_type: str, routers: list[str]) -> None:
    model = make_model(model_type)
    assert sorted(find_routers(model)) == sorted(routers)
    assert not set(routers) & set(quantizable_layers(model, QuantConfig(group_size=32)))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "jamba"])
def test_what_is_found_is_what_chooses_experts(model_type: str) -> None:
    """Twice the weights of a router change how much each expert counts, or which of them do."""
    model = make_model(model_type)
    chosen: list[torch.Tensor] = []

    def record(_: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        chosen.append((*args, *kwargs.values())[2].clone())  # hidden states, experts, their weights

    experts = [module for name, module in model.named_modules() if name.endswith(".experts")]
    for module in experts:
        module.register_forward_pre_hook(record, with_kwargs=True)
    ids = torch.arange(3, 40)[None]
    model(input_ids=ids)
    for name, router in find_routers(model).items():
        if not name.endswith("shared_expert_gate"):
            router.weight.data.mul_(2)
    before, chosen = chosen, []
    model(input_ids=ids)
    assert len(before) == len(experts)
    assert all(not torch.equal(a, b) for a, b in zip(before, chosen, strict=True))


class Oddly(nn.Module):
    """A block whose router has a name that no list has; beside it lies attention with as many outputs as experts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.q = nn.Linear(32, 64)
        self.attention.k = nn.Linear(32, 8)
        self.whither = nn.Module()
        self.whither.map = nn.Linear(32, 8)
        self.many = nn.Module()
        self.many.weights = nn.Parameter(torch.zeros(8, 16, 32))
        self.conv = nn.Conv1d(32, 32, 4)


def test_names_do_not_matter_and_layers_beside_wider_ones_are_no_routers() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Oddly(), Oddly()])

    model = Model()
    assert list(find_routers(model)) == ["blocks.0.whither.map", "blocks.1.whither.map"]
    kept = quantizable_layers(model, QuantConfig(group_size=32))
    assert list(kept) == [f"blocks.{i}.attention.{name}" for i in (0, 1) for name in ("q", "k")]
