"""What a model does to the product of its states and its output head, found by handing the head's place test values.

Shapes: L tokens, V vocabulary, d width. The head is a module of its own in nearly every model, so its output can be
replaced: what the model makes of known values says whether it scales or caps them, whatever its settings are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from rayqd.errors import ModelError
from rayqd.model.forward.mode import HeadForm, StateSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL, _LARGE = 2.0**-10, 2.0**20  # logits that no tanh bends, and that any tanh takes to its limit
TOLERANCE = 1e-3  # of the root mean square of what is compared: float32 roundings of a few layers are below 1e-4


@torch.no_grad()
def find_head_form(model: PreTrainedModel, ids: Tensor) -> tuple[StateSource, HeadForm]:
    """Return where the states come from that the head of `model` multiplies, and what becomes of the product.

    `ids` [1, L] is a row to try. Raises ModelError where the logits are no scaled, shifted and capped product.
    """
    head = cast("nn.Module | None", model.get_output_embeddings())
    if head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise ModelError("it has no output head whose weight could be read")
    with _record(head) as calls:
        logits = _logits(model, ids)
    if len(calls) != 1:
        raise ModelError(f"it calls its output head {len(calls)} times in a forward pass")
    states, product = calls[0]
    if not is_close(product, apply_head(head, states)):
        raise ModelError("its output head is no product with a weight")
    scale, cap = _response(model, head, ids, product.shape)
    form = HeadForm(scale=scale, bias_scale=scale, cap=cap)
    if not is_close(logits, cap_logits(scale * product, cap)):
        raise ModelError("its logits are no product of states and output head")
    return _source(model, ids, states, form)


def apply_head(head: nn.Module, states: Tensor) -> Tensor:
    """Return the plain product of `states` [..., d] and a head's weight, with its bias if it has one."""
    return nn.functional.linear(states, cast(Tensor, head.weight), cast("Tensor | None", getattr(head, "bias", None)))


def cap_logits(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap · tanh(logits / cap), or the logits themselves without a cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def is_close(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether both are finite, of one shape, and differ by no more than float32 roundings may."""
    return distance(tensor, expected) <= TOLERANCE


def distance(tensor: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the root mean square of `expected`; inf where none can be told."""
    if tensor.shape != expected.shape or not bool(tensor.isfinite().all()) or not bool(expected.isfinite().all()):
        return float("inf")
    spread = expected.double().square().mean().sqrt().clamp_min(1e-30)
    return float((tensor.double() - expected.double()).abs().max() / spread)


def _response(model: PreTrainedModel, head: nn.Module, ids: Tensor, shape: torch.Size) -> tuple[float, float | None]:
    """Return slope and limit of what the model makes of its head's output; raise ModelError for any other function."""

    def respond(values: Tensor) -> Tensor:
        with _replaced(head, lambda _: values.clone()):
            return _logits(model, ids)

    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(shape, generator=generator).sign()
    small, large = respond(_SMALL * signs), respond(_LARGE * signs)
    scale = float((small * signs).double().mean()) / _SMALL
    limit = float((large * signs).double().mean())
    cap = None if abs(limit / (_LARGE * scale) - 1.0) < 1e-3 else limit
    if abs(scale - 1.0) < 1e-6:  # no more than the roundings of the mean
        scale = 1.0
    tried = torch.randn(shape, generator=generator) * (cap or 10.0) / scale
    if not scale > 0.0 or not is_close(respond(tried), cap_logits(scale * tried, cap)):
        raise ModelError("it changes the output head's logits otherwise than by a scale and a cap")
    return scale, cap


def _source(model: PreTrainedModel, ids: Tensor, states: Tensor, form: HeadForm) -> tuple[StateSource, HeadForm]:
    """Take the states of the model without its head if they are what the head is called with, or a multiple of it."""
    output = model.base_model(input_ids=ids, use_cache=False)
    last = getattr(output, "last_hidden_state", None)
    if not isinstance(last, Tensor) or last.shape != states.shape:
        return StateSource.HEAD_INPUT, form
    if is_close(last, states):
        return StateSource.BASE_MODEL, form
    ratio = float((last.double() * states.double()).sum() / last.double().square().sum())
    if ratio > 0 and is_close(ratio * last, states):
        scaled = HeadForm(scale=form.scale * ratio, bias_scale=form.bias_scale, cap=form.cap)
        return StateSource.BASE_MODEL, scaled
    return StateSource.HEAD_INPUT, form


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return cast(Any, model)(input_ids=ids, use_cache=False).logits.float()


@contextmanager
def _record(head: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield a list to which each call's input and output are added."""
    calls: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append((args[0].detach(), output.detach().clone()))

    handle = head.register_forward_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor:
        return forward(output)

    handle = head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
