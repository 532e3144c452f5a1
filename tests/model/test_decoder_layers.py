"""Compiled decoder layers and checkpointed ones compute what the plain ones do. On a CPU: the compiler is the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rayqd.config import Config
from rayqd.model.decoder_layers import checkpoint_layers, compile_layers, decoder_layers, uncompile_layers
from rayqd.model.fake_quantized_linear import fake_quantized_linear, make_fake_quantizer
from rayqd.model.low_rank import LowRank
from rayqd.model.student import Student
from rayqd.quant.int4 import Int4Grid

# The compiler looks at its inputs' gradients, and hides what torch says of that; not from pytest.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")


def student(directory: Path, **adapter: Any) -> Student:
    config = Config.model_validate(
        {
            "model": {"name": str(directory), "dtype": "float32"},
            "quant": {"group_size": 32},
            "adapter": {"rank": 4, **adapter},
        }
    )
    made = Student.load(directory, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.parameters().items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def states_and_gradients(student: Student, num_tokens: int = 24) -> dict[str, Tensor]:
    for parameter in student.parameters().values():
        parameter.grad = None
    ids = torch.arange(3, 3 + num_tokens)[None]
    states = student.model.base_model(input_ids=ids, use_cache=False, lengths=[ids.shape[1]]).last_hidden_state
    states.pow(3).sum().backward()
    found = {"states": states.detach()}
    return found | {n: p.grad.clone() for n, p in student.parameters().items() if p.grad is not None}


def assert_alike(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() < 1e-5 * value.norm(), name


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [{}, {"saturated": "stop"}, {"placement": "outside"}, {"kind": "none"}],
    ids=["pass", "stop", "outside", "full"],
)
def test_compiled_layers_compute_what_plain_ones_do(tiny_model: Path, adapter: dict[str, Any]) -> None:
    made = student(tiny_model, **adapter)
    expected, longer = states_and_gradients(made), states_and_gradients(made, 40)
    counters.clear()
    compile_layers(made.model)
    assert_alike(states_and_gradients(made), expected)
    assert_alike(states_and_gradients(made, 40), longer)
    # Nothing was left out of a layer's graph; the first layer, whose input has no gradient, is apart, others share one.
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2
    uncompile_layers(made.model)
    assert all("forward" not in vars(layer) for layer in decoder_layers(made.model))
    again = states_and_gradients(made)
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@needs_compiler
@pytest.mark.slow
def test_compiled_and_checkpointed_layers_compute_what_plain_ones_do(tiny_model: Path) -> None:
    made = student(tiny_model)
    expected = states_and_gradients(made)
    checkpoint_layers(made.model)
    plain = states_and_gradients(made)
    assert all(torch.equal(plain[name], value) for name, value in expected.items())
    compile_layers(made.model)
    assert_alike(states_and_gradients(made), expected)


def test_a_checkpointed_layer_is_in_training_and_its_dropout_is_not(tiny_model: Path) -> None:
    model = student(tiny_model).model
    checkpoint_layers(model)
    assert all(layer.training for layer in decoder_layers(model))
    assert not any(layer.self_attn.training or layer.mlp.training for layer in decoder_layers(model))


@pytest.mark.parametrize("stops_saturated", [True, False])
@pytest.mark.parametrize("rank", [None, 4])
def test_the_operators_are_what_torch_asks_of_one(rank: int | None, stops_saturated: bool) -> None:
    """torch.library.opcheck: schema, shapes without data, autograd's registration, and tracing with dynamic shapes."""
    torch.manual_seed(0)
    quantizer = make_fake_quantizer(Int4Grid(32, torch.float32, "signed"), stops_saturated=stops_saturated)
    x = torch.randn(1, 5, 64, requires_grad=True)
    weight = torch.randn(48, 64, requires_grad=rank is None)
    a = b = None
    if rank is not None:
        a, b = torch.randn(rank, 64, requires_grad=True), torch.randn(48, rank, requires_grad=True)
    operator = torch.ops.rayqd.fake_quantized_linear.default
    torch.library.opcheck(operator, (x, weight, a, b, None, 0.5, quantizer.number, stops_saturated))
    low_rank = LowRank(a, b, 0.5) if a is not None and b is not None else None
    inputs = [t for t in (x, weight, a, b) if t is not None and t.requires_grad]
    expected = fake_quantized_linear(x, weight, low_rank, None, quantizer)
    actual = operator(x, weight, a, b, None, 0.5, quantizer.number, stops_saturated)
    assert torch.equal(actual, expected)
    upstream = torch.randn(expected.shape)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert torch.equal(one, other)


def test_one_grid_has_one_number() -> None:
    grid, other = Int4Grid(32, torch.float32, "signed"), Int4Grid(64, torch.float32, "signed")
    assert make_fake_quantizer(grid).number == make_fake_quantizer(grid).number
    assert make_fake_quantizer(grid).number != make_fake_quantizer(other).number
