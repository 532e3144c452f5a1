"""Attention over packed rows, against the softmax written out in float64 for each row alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayqd.errors import ModelError
from rayqd.model.packed_attention import packed_attention

_HEADS, _KEYS, _WIDTH, _LENGTHS = 4, 2, 8, [5, 12, 1]
_SCALE = 0.4


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = sum(_LENGTHS)
    query = 3 * torch.randn(1, _HEADS, total, _WIDTH, generator=generator)
    key, value = torch.randn(2, 1, _KEYS, total, _WIDTH, generator=generator)
    return query, key, value


def _module() -> nn.Module:
    module = nn.Module()
    module.num_key_value_groups = _HEADS // _KEYS  # pyright: ignore[reportArgumentType]
    return module


def _formula(window: int | None, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """Loop over rows, heads and tokens."""
    query, key, value = (tensor[0].double() for tensor in _inputs())
    output = torch.zeros(sum(_LENGTHS), _HEADS, _WIDTH, dtype=torch.float64)
    start = 0
    for length in _LENGTHS:
        for head in range(_HEADS):
            for i in range(length):
                first = 0 if window is None else max(0, i - window + 1)
                seen = slice(start + first, start + i + 1)
                group = head // (_HEADS // _KEYS)
                scores = _SCALE * (key[group, seen] @ query[head, start + i])
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = scores.exp()
                total = weights.sum() + (0.0 if sinks is None else sinks[head].double().exp())
                output[start + i, head] = (weights / total) @ value[group, seen]
        start += length
    return output[None]


_SINKS = torch.tensor([-1.0, 0.5, 2.0, 3.0])


@pytest.mark.parametrize("window", [None, 3, 12])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("sinks", [None, _SINKS], ids=["without sinks", "with sinks"])
def test_windows_caps_and_sinks_are_computed(window: int | None, softcap: float | None, sinks: Tensor | None) -> None:
    output, weights = packed_attention(
        _module(),
        *_inputs(),
        None,
        lengths=_LENGTHS,
        sliding_window=window,
        softcap=softcap,
        s_aux=sinks,
        scaling=_SCALE,
    )
    assert weights is None
    torch.testing.assert_close(output.double(), _formula(window, softcap, sinks), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"position_bias": torch.zeros(1, 4, 18, 18)}, r"position_bias=a tensor \[1, 4, 18, 18\]"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"head_mask": torch.ones(4)}, "head_mask"),
        ({"is_causal": False}, "is_causal=False"),
    ],
)
def test_a_keyword_that_it_does_not_know_is_an_error(keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        packed_attention(_module(), *_inputs(), None, lengths=_LENGTHS, **keywords)


def test_keywords_that_change_nothing_are_none() -> None:
    settings = {"dropout": 0.0, "is_causal": True, "position_bias": None, "use_cache": False}
    output, _ = packed_attention(_module(), *_inputs(), None, lengths=_LENGTHS, scaling=_SCALE, **settings)
    torch.testing.assert_close(output.double(), _formula(None, None, None), rtol=1e-5, atol=1e-6)


def test_a_call_without_lengths_is_an_error() -> None:
    with pytest.raises(ModelError, match="was not told where rows begin"):
        packed_attention(_module(), *_inputs(), None)


def test_an_encoder_s_attention_is_an_error() -> None:
    module = _module()
    module.is_causal = False  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="packed attention is causal"):
        packed_attention(module, *_inputs(), None, lengths=_LENGTHS)
