"""Which layers are quantized."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.quant import quantizable_layers


class Block(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden, inner)
        self.down_proj = nn.Linear(inner, hidden)


class Model(nn.Module):
    def __init__(self, hidden: int = 576, inner: int = 1536, *, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(64, hidden)
        self.layers = nn.ModuleList([Block(hidden, inner), Block(hidden, inner)])
        self.lm_head = nn.Linear(hidden, 64, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight


def meta_model(hidden: int = 576, inner: int = 1536, *, tied: bool = False) -> Model:
    with torch.device("meta"):
        return Model(hidden, inner, tied=tied)


def test_every_linear_but_the_head_in_the_models_order() -> None:
    model = meta_model()
    layers = quantizable_layers(model, QuantConfig(group_size=64))
    assert list(layers) == ["layers.0.up_proj", "layers.0.down_proj", "layers.1.up_proj", "layers.1.down_proj"]
    assert layers["layers.1.up_proj"] is model.layers[1].up_proj


@pytest.mark.parametrize(
    ("ignore", "kept"),
    [
        (["lm_head", "up_proj"], ["layers.0.down_proj", "layers.1.down_proj"]),
        (["lm_head", "1.up_proj", "layers.0.down_proj"], ["layers.0.up_proj", "layers.1.down_proj"]),
        (["lm_head", "proj", "layers.0", "p_proj"], [f"layers.{i}.{p}_proj" for i in (0, 1) for p in ("up", "down")]),
    ],
)
def test_ignore_matches_names_and_their_last_whole_parts(ignore: list[str], kept: list[str]) -> None:
    assert list(quantizable_layers(meta_model(), QuantConfig(group_size=64, ignore=ignore))) == kept


def test_group_size_that_does_not_fit_names_layer_width_count_and_remedy() -> None:
    # 576 = 9 * 64 and 1536 = 12 * 128: 128 fits the two down projections alone.
    with pytest.raises(ConfigError) as raised:
        quantizable_layers(meta_model(), QuantConfig(group_size=128))
    assert str(raised.value) == (
        "quant.group_size=128 does not divide layers.0.up_proj's 576 input features (2 of 4 layers do not fit); "
        "use 32 or 64, or add the layers that do not fit to quant.ignore"
    )


def test_group_size_when_no_usual_one_fits() -> None:
    with pytest.raises(
        ConfigError, match="none of 32, 64, 128, 256 fits all layers, so add the layers that do not fit"
    ):
        quantizable_layers(meta_model(hidden=40), QuantConfig(group_size=64))


def test_layer_tied_to_the_embedding_must_be_ignored() -> None:
    model = meta_model(tied=True)
    assert "lm_head" not in quantizable_layers(model, QuantConfig(group_size=64))
    with pytest.raises(ConfigError, match="lm_head shares its weight with the embedding"):
        quantizable_layers(model, QuantConfig(group_size=64, ignore=[]))


def test_untied_head_can_be_quantized() -> None:
    assert "lm_head" in quantizable_layers(meta_model(), QuantConfig(group_size=64, ignore=[]))


def test_nothing_left_to_quantize_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"leaves no nn\.Linear of Model to quantize"):
        quantizable_layers(meta_model(), QuantConfig(group_size=64, ignore=["lm_head", "up_proj", "down_proj"]))
