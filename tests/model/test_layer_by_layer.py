"""Calibration's layer inputs: what the layers of the whole model get, for layers that hand on more than one tensor."""

import pytest
import torch
from torch import nn

from rayqd.errors import ModelError
from rayqd.model.calibration import check
from rayqd.model.calibration.check import check_layer_by_layer
from tests.tiny_models import tiny_config

_SPREAD = ["llama", "stablelm", "lfm2", "bamba", "zamba2", "gemma3n_text", "gemma4_text", "gpt_oss", "bloom", "gptj"]


@pytest.mark.parametrize("model_type", _SPREAD)
def test_layers_one_by_one_are_the_whole_model(model_type: str) -> None:
    check_layer_by_layer(tiny_config(model_type), "gptq")


def test_decoder_layers_that_are_not_found_are_said_before_anything_starts() -> None:
    with pytest.raises(ModelError, match="AWQ does not find the decoder layers of CTRLLMHeadModel"):
        check_layer_by_layer(tiny_config("ctrl"), "awq")
    check_layer_by_layer(tiny_config("ctrl"), "rtn")


def test_layers_that_compute_something_else_one_by_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(nn.Module):
        """A layer that does something else at every call."""

        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.calls = layer, 0

        def forward(self, hidden: torch.Tensor, **keywords: object) -> torch.Tensor:
            self.calls += 1
            return self.layer(hidden, **keywords) * self.calls

    find = check.decoder_layers_of

    def wrapped(model: object, method: str) -> nn.ModuleList:
        layers = find(model, method)  # pyright: ignore[reportArgumentType]
        layers[-1] = Counting(layers[-1])
        return layers

    monkeypatch.setattr(check, "decoder_layers_of", wrapped)
    with pytest.raises(ModelError, match=r"GPTQ cannot run the layers of Llama models one by one .*off by"):
        check_layer_by_layer(tiny_config("llama"), "gptq")
