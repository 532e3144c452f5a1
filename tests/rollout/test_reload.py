"""A reload leaves every tensor where CUDA graphs know it. No GPU is needed: it is a matter of identity and address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rayqd.errors import WorkerError
from rayqd.rollout.rank import Rank
from rayqd.rollout.reload import keep_addresses, list_addresses
from rayqd.rollout.weights import PackedLoader


class Scales(NamedTuple):
    """As vLLM's kernels hand over what belongs together."""

    weight: Tensor
    other: int


@dataclass(frozen=True)
class FrozenConfig:
    """A quantization config of a kernel, which a reload builds anew."""

    scale: Tensor


def filled(value: float) -> Tensor:
    return torch.full((4,), value)


def multiply_with(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x * weight


def load(layer: Any, value: float) -> None:
    """What vLLM's post-load processing does with a layer in one version or another, all of it with new tensors."""
    layer.scheme = SimpleNamespace(
        kernel=SimpleNamespace(  # a new kernel, as of issue 41670; workspace and sort indices as of request 48438
            workspace=filled(value), sort_indices=filled(value), config=SimpleNamespace(chain=[filled(value)])
        )
    )
    layer.absorbed = filled(value)  # MLA's W_UV
    layer.scales = {"k": filled(value), "named": Scales(filled(value), 1)}  # attention's
    layer.apply = partial(torch.mul, other=filled(value))
    layer.closure = multiply_with(filled(value))
    layer.zero_points = torch.nn.Parameter(filled(value), requires_grad=False)
    layer.frozen = SimpleNamespace(config=FrozenConfig(filled(value)))
    layer.bias.data = filled(value)  # the same object on other memory


def tensors(layer: Any) -> list[Tensor]:
    kernel = layer.scheme.kernel
    return [
        *(kernel.workspace, kernel.sort_indices, kernel.config.chain[0], layer.absorbed, layer.scales["k"]),
        *(layer.scales["named"].weight, layer.apply.keywords["other"], layer.closure.__closure__[0].cell_contents),
        *(layer.zero_points, layer.bias, layer.frozen.config.scale),
    ]


def loaded_model() -> Any:
    layer = torch.nn.Linear(4, 4).requires_grad_(False)
    load(layer, 1.0)
    return torch.nn.ModuleDict({"layer": layer, "plain": torch.nn.Linear(2, 2)})


def test_new_values_are_at_the_old_addresses_in_the_old_objects() -> None:
    model = loaded_model()
    before, addresses = tensors(model["layer"]), [t.data_ptr() for t in tensors(model["layer"])]
    for value in (2.0, 3.0):
        with keep_addresses(model):
            load(model["layer"], value)
        after = tensors(model["layer"])
        assert all(one is other for one, other in zip(before, after, strict=True))
        assert [tensor.data_ptr() for tensor in after] == addresses
        assert all(torch.equal(tensor, filled(value)) for tensor in after)
    assert model["layer"].scales["named"].other == 1


def test_what_computes_afterwards_computes_with_the_new_values() -> None:
    model = loaded_model()
    with keep_addresses(model):
        load(model["layer"], 5.0)
    ones = torch.ones(4)
    assert torch.equal(model["layer"].closure(ones), filled(5.0))
    assert torch.equal(model["layer"].apply(ones), filled(5.0))


class Runner:
    """vLLM's model runner before its pull request 48438: every reload makes new workspaces."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.model: Any = loaded_model()

    def get_model(self) -> torch.nn.Module:
        return self.model

    def reload_weights(self, *, weights_iterator: Iterator[tuple[str, Tensor]]) -> None:
        list(weights_iterator)
        load(self.model["layer"], 0.0)


@pytest.mark.parametrize(("mode", "kept"), [("FULL_AND_PIECEWISE", True), ("NONE", False)])
def test_an_engine_with_graphs_keeps_its_workspaces_at_every_publish(mode: str, kept: bool) -> None:
    runner = Runner()
    rank: Any = Rank()  # as vLLM's worker is one
    rank.model_runner = runner
    rank.vllm_config = SimpleNamespace(compilation_config=SimpleNamespace(cudagraph_mode=SimpleNamespace(name=mode)))
    before = runner.model["layer"].scheme.kernel.workspace
    for _ in range(2):
        rank.load_published_weights({}, PackedLoader())
        assert (runner.model["layer"].scheme.kernel.workspace is before) == kept


def replace_by_a_longer_one(layer: Any) -> None:
    layer.scheme.kernel.workspace = torch.zeros(8)


def remove(layer: Any) -> None:
    del layer.scheme.kernel.workspace


def transpose(layer: Any) -> None:
    layer.weight = torch.nn.Parameter(layer.weight.t(), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (replace_by_a_longer_one, "float32 [8] with strides [1] where layer.scheme.kernel.workspace was float32 [4]"),
        (remove, "nothing there where layer.scheme.kernel.workspace was float32 [4] with strides [1]"),
        (transpose, "float32 [4, 4] with strides [1, 4] where layer.weight was float32 [4, 4] with strides [4, 1]"),
    ],
)
def test_a_tensor_that_cannot_be_kept_is_named(change: Callable[[Any], None], what: str) -> None:
    model = loaded_model()
    with pytest.raises(WorkerError) as refused, keep_addresses(model):
        change(model["layer"])
    assert what in str(refused.value)


def test_a_reload_that_fails_leaves_the_old_objects_too() -> None:
    model = loaded_model()
    before = tensors(model["layer"])

    def fail() -> None:
        with keep_addresses(model):
            load(model["layer"], 2.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(one is other for one, other in zip(before, tensors(model["layer"]), strict=True))


def test_the_freed_memory_of_a_moved_tensor_would_be_given_to_others() -> None:
    """The fault itself, so that the tests above can fail: without the block the addresses differ."""
    model = loaded_model()
    before, addresses = tensors(model["layer"]), list_addresses(model)
    load(model["layer"], 2.0)
    assert len(before) == 11
    after = list_addresses(model)
    assert after.keys() == addresses.keys()
    moved = {name for name in addresses if after[name] != addresses[name]}
    assert len(moved) == 11
    assert moved >= {"layer.scheme.kernel.workspace", "layer.zero_points", "layer.bias", "layer.scales.k"}
