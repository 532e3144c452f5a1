"""The forward mode held against the model itself, with the weights that were loaded.

The probe tries a small random copy; here the real model reads two short rows once, in its own dtype. What roundings to
16 bits do to a deep model is far less than what a row does that leaks into another, or logits that are made otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.model.forward.call import states_of_rows
from rayqd.model.forward.head_form import cap_logits
from rayqd.model.forward.mode import Batching, ForwardMode
from rayqd.model.forward.of_model import mode_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LENGTHS = 11, 7  # tokens of the rows, of which the second is looked at
# Share of a token's states by which they may differ on average. Small copies leak .19 to 5 of it; what roundings to 16
# bits leave, and a router that decides otherwise for a token, is far below.
_MOST_IN_16_BITS, _MOST_IN_32_BITS = 0.15, 0.01


@torch.no_grad()
def check_mode(model: PreTrainedModel) -> None:
    """Raise ModelError where rows in one call, or the form of the head, do not give what the model itself computes."""
    mode = mode_of(model)
    vocab_size = len(cast(Any, model).get_output_embeddings().weight)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocab_size, (length,), generator=generator) for length in _LENGTHS]
    together = states_of_rows(model, rows if mode.batching is not Batching.ALONE else rows[1:], mode)[-_LENGTHS[1] :]
    if mode.attention != "eager":
        model.set_attn_implementation("eager")
    try:
        alone = states_of_rows(model, rows[1:], replace(mode, batching=Batching.ALONE))
        logits = cast(Any, model)(input_ids=rows[1][None].to(alone.device), use_cache=False).logits[0]
    finally:
        if mode.attention != "eager":
            model.set_attn_implementation(mode.attention)
    most = _MOST_IN_32_BITS if alone.dtype == torch.float32 else _MOST_IN_16_BITS
    for what, tensor, expected in (
        ("states of rows in one call", together, alone),
        ("logits from states", _logits(model, alone, mode), logits),
    ):
        error = mean_distance(tensor, expected)
        if not error <= most:
            raise ModelError(
                f"{type(model).__name__}: {what} are off by {error:.2g} of their size from what the model itself "
                f"computes of the row alone, and roundings explain {most:g}: this model cannot be distilled"
            )


def mean_distance(tensor: Tensor, expected: Tensor) -> float:
    """Return how far rows [T, n] are from `expected`, as a share of its size: the mean over the rows."""
    expected = expected.to(tensor.device)  # of a model on several GPUs
    difference = (tensor.float() - expected.float()).norm(dim=-1)
    return float((difference / expected.float().norm(dim=-1).clamp_min(1e-30)).mean())


def _logits(model: PreTrainedModel, states: Tensor, mode: ForwardMode) -> Tensor:
    head = cast(Any, model).get_output_embeddings()
    product = torch.nn.functional.linear(states.to(head.weight.device), head.weight).float() * mode.head.scale
    bias: Tensor | None = getattr(head, "bias", None)
    if bias is not None:
        product += mode.head.bias_scale * bias.float()
    return cap_logits(product, mode.head.cap)
