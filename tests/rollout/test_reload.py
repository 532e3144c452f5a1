"""A reload leaves each layer's workspace where CUDA graphs know it. No GPU is needed: it is a matter of identity."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rayqd.rollout.reload import keep_workspaces
from rayqd.rollout.vllm import VLLMEngine
from rayqd.rollout.weights import PackedLoader


def model() -> torch.nn.ModuleDict:
    """Layers as vLLM has them: int4 by a scheme's kernel, nvfp4 on the layer, dense with neither, the new int4 none."""
    layers = {name: torch.nn.Linear(2, 2) for name in ("int4", "nvfp4", "dense", "newer")}
    layers["int4"].scheme = SimpleNamespace(kernel=SimpleNamespace(workspace=torch.zeros(4, dtype=torch.int32)))
    layers["nvfp4"].workspace = torch.zeros(4, dtype=torch.int32)
    layers["newer"].scheme = SimpleNamespace(kernel=SimpleNamespace(workspace=None))
    return torch.nn.ModuleDict(layers)


class ReplacingRunner:
    """vLLM's model runner before its pull request 48438: every reload makes new workspaces."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.model = model()
        self.reloaded: list[str] = []

    def get_model(self) -> torch.nn.Module:
        return self.model

    def reload_weights(self, *, weights_iterator: Iterator[tuple[str, Tensor]]) -> None:
        self.reloaded += [name for name, _ in weights_iterator]
        self.model["int4"].scheme.kernel.workspace = torch.zeros(4, dtype=torch.int32)
        self.model["nvfp4"].workspace = torch.zeros(4, dtype=torch.int32)


def workspaces(layers: Any) -> list[Tensor]:
    return [layers["int4"].scheme.kernel.workspace, layers["nvfp4"].workspace]


def test_an_engine_s_layers_have_the_same_workspace_after_every_publish() -> None:
    runner = ReplacingRunner()
    executor = SimpleNamespace(driver_worker=SimpleNamespace(worker=SimpleNamespace(model_runner=runner)))
    engine = object.__new__(VLLMEngine)
    engine._weight_loader = PackedLoader()
    engine._llm = SimpleNamespace(llm_engine=SimpleNamespace(model_executor=executor), reset_prefix_cache=lambda: None)
    before = workspaces(runner.model)
    for _ in range(2):
        engine.load_weights({})
        assert all(one is other for one, other in zip(before, workspaces(runner.model), strict=True))


def test_nothing_is_added_to_layers_without_a_workspace() -> None:
    layers = model()
    with keep_workspaces(layers):
        pass
    assert layers["newer"].scheme.kernel.workspace is None
    assert not hasattr(layers["dense"], "workspace")


def test_a_reload_that_fails_leaves_the_workspaces_too() -> None:
    runner = ReplacingRunner()
    before = workspaces(runner.model)

    def fail() -> None:
        with keep_workspaces(runner.model):
            runner.reload_weights(weights_iterator=iter(()))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(one is other for one, other in zip(before, workspaces(runner.model), strict=True))
