"""AutoRound over a model: what each layer learns from, that it helps, and that it never harms a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call  # pyright: ignore[reportUnknownVariableType]

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.model.calibration import calibrate
from rayqd.model.calibration.layer_inputs import LayerInputs
from rayqd.model.calibration.sequential import decoder_layers_of
from rayqd.model.load import load_model
from rayqd.model.token_limit import TokenLimit
from rayqd.quant import make_grid, quantizable_layers
from tests.model.calibrating import GRID, QUANT, kl_to, quantized, sequences
from tests.tiny_models import tiny_causal_model, tiny_config

STEPS = 8


@pytest.fixture
def load(tiny_model: Path) -> Callable[[], Any]:
    return lambda: load_model(tiny_model, "bfloat16")


def learn(model: Any, steps: int, grid: Any = GRID, number: int = 24) -> set[str]:
    quant = QuantConfig(group_size=32, rounding_steps=steps)
    return calibrate(model, quant, grid, sequences(number), method="autoround", max_batch_tokens=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["signed", "absmax", "asymmetric", "searched"])
def test_it_is_nearer_to_the_dense_model_than_rounding_under_every_rule(load: Callable[[], Any], rule: str) -> None:
    quant = QuantConfig.model_validate({"group_size": 32, "rule": rule, "rounding_steps": 20})
    grid, model = make_grid(quant, torch.bfloat16), load()
    calibrate(model, quant, grid, sequences(24), method="autoround", max_batch_tokens=256)
    assert kl_to(load(), quantized(model, quant, grid)) < kl_to(load(), quantized(load(), quant, grid))


def test_both_layers_learn_what_a_loop_by_hand_does(load: Callable[[], Any]) -> None:
    """In float64, every sequence alone through transformers' own layers, all of them in each step."""
    model, dense = load().double(), load().double()
    grid = make_grid(QUANT, torch.float64)
    learn(model, STEPS, grid)
    dense.set_attn_implementation("eager")
    own, original = (
        [dense.base_model.embed_tokens(torch.from_numpy(s.astype(np.int64)))[None] for s in sequences()],
    ) * 2
    for index, layer in enumerate(dense.base_model.layers):
        targets = [call(dense, layer, x, {}) for x in original]
        weights = learn_by_hand(dense, layer, own, targets)
        ours = model.base_model.layers[index].state_dict()
        for name, weight in weights.items():
            same = grid.quantize(ours[name]).codes == grid.quantize(weight).codes
            assert same.float().mean() > 0.99, (index, name)  # of a gradient near zero the sign is anybody's
        values = {name: grid.fake_quantize(weight) for name, weight in weights.items()}
        own, original = [call(dense, layer, x, values) for x in own], targets
        assert not torch.equal(own[0], original[0])


def call(model: Any, layer: Any, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    length = x.shape[1]
    positions = model.base_model.rotary_emb(x, torch.arange(length)[None])
    mask = torch.full((length, length), -torch.inf, dtype=x.dtype).triu(1)[None, None]
    output = functional_call(layer, weights, (x,), {"position_embeddings": positions, "attention_mask": mask})
    return output[0] if isinstance(output, tuple) else output


def learn_by_hand(model: Any, layer: Any, inputs: list[Tensor], targets: list[Tensor]) -> dict[str, Tensor]:
    """The weights after STEPS steps of signed descent on offsets and shares, as the paper has it."""
    names = [f"{name}.weight" for name in quantizable_layers(layer, QUANT)]
    start = {name: layer.get_parameter(name).detach().reshape(-1, 32) for name in names}
    offsets = {name: torch.zeros_like(w, requires_grad=True) for name, w in start.items()}
    shares = {name: torch.ones(len(w), 1, dtype=w.dtype, requires_grad=True) for name, w in start.items()}
    for step in range(STEPS):
        values = {name: value(start[name], offsets[name], shares[name]) for name in names}
        shaped = {name: v.reshape(layer.get_parameter(name).shape) for name, v in values.items()}
        loss = sum((call(model, layer, x, shaped) - y).square().sum() for x, y in zip(inputs, targets, strict=True))
        learned = [*offsets.values(), *shares.values()]
        rate = (STEPS - step) / STEPS**2
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):  # type: ignore[arg-type]
            parameter.data -= rate * gradient.sign()
        for name in names:
            offsets[name].data.clamp_(-0.5, 0.5)
            shares[name].data.clamp_(0, 1)
    return {
        name: value(start[name], offsets[name], shares[name]).detach().reshape(layer.get_parameter(name).shape)
        for name in names
    }


def value(groups: Tensor, offsets: Tensor, shares: Tensor) -> Tensor:
    """The signed rule: the element of largest magnitude has the code -8."""
    places = groups.abs().argmax(-1, keepdim=True)
    scale = shares * groups.gather(-1, places) / -8
    x = groups / scale + offsets.scatter(-1, places, 0.0)
    return (x + (x.round() - x).detach()).clamp(-8, 7) * scale


def test_a_layer_that_ends_no_nearer_keeps_its_weights(load: Callable[[], Any]) -> None:
    """One step moves every offset to an end: a layer whose codes are all one off."""
    assert learn(load(), 1, number=6) == set()
    assert learn(load(), 10, number=6) != set()


@pytest.mark.slow
def test_how_many_tokens_go_at_once_changes_no_result(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, with several groups of sequences a layer, and several calls a group."""
    monkeypatch.setattr("rayqd.model.calibration.sequential.TOKENS_A_STEP", 160)
    grid, models = make_grid(QUANT, torch.float64), []
    for tokens in (10_000, 50):
        models.append(load().double())
        quant = QuantConfig(group_size=32, rounding_steps=STEPS)
        calibrate(models[-1], quant, grid, sequences(), method="autoround", max_batch_tokens=tokens)
    one, other = ({name: m.weight for name, m in quantizable_layers(model, QUANT).items()} for model in models)
    for name, weight in one.items():
        assert (grid.quantize(weight).codes == grid.quantize(other[name]).codes).float().mean() > 0.99, name


def test_layers_without_anything_to_quantize_are_passed_through(load: Callable[[], Any]) -> None:
    model = load()
    quant = QuantConfig(group_size=32, rounding_steps=10, ignore=["lm_head", *first_layer(model)])
    changed = calibrate(model, quant, GRID, sequences(6), method="autoround", max_batch_tokens=512)
    assert changed
    assert all(".layers.1." in name for name in changed)


def first_layer(model: Any) -> list[str]:
    return [name for name in quantizable_layers(model, QUANT) if ".layers.0." in name]


def test_inputs_and_weights_that_are_not_finite_are_refused_by_name(load: Callable[[], Any]) -> None:
    model = load()
    model.base_model.layers[0].input_layernorm.weight.data[3] = torch.inf
    with pytest.raises(ModelError, match=r"model\.layers\.0 is given inputs that are inf or nan, and AutoRound"):
        learn(model, 4, number=6)
    model = load()
    model.base_model.layers[1].mlp.up_proj.weight.data[3, 5] = torch.nan
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 values that are inf or nan"):
        learn(model, 4, number=6)


def test_the_original_layers_have_keys_and_values_of_their_own() -> None:
    """Of a model whose later layers read those of earlier ones, which quantization changes."""
    config = tiny_config("gemma4_text")
    config.num_kv_shared_layers = 2
    model = tiny_causal_model(config)
    layers = decoder_layers_of(model, "autoround")
    limit = TokenLimit(tokens=10_000, setting="", advice="")
    expected, targets, inputs = (LayerInputs(model, layers, sequences(6), limit) for _ in range(3))
    with torch.no_grad():
        for index in range(len(layers)):
            expected.advance(index)
        for index, layer in enumerate(layers):
            targets.advance(index)
            kept = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
            for parameter in layer.parameters():
                parameter.mul_(1.5)
            inputs.advance(index)
            layer.load_state_dict(kept)
    assert torch.equal(targets.hidden_of(range(6)), expected.hidden_of(range(6)))
    assert not torch.equal(targets.hidden_of(range(6)), inputs.hidden_of(range(6)))


def test_a_format_that_it_does_not_know_is_one_clear_error(load: Callable[[], Any]) -> None:
    quant = QuantConfig.model_validate({"format": "nf4", "group_size": 64})
    grid = make_grid(quant, torch.bfloat16)
    with pytest.raises(ConfigError, match=r"AutoRound needs quant\.format=int4, got nf4; use awq or rtn"):
        calibrate(load(), quant, grid, sequences(), method="autoround", max_batch_tokens=64)
