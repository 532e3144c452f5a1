"""Which way of running a model is right: tried on a tiny random copy of its configuration, in float32 on the CPU.

Rows of different lengths go through the copy's own eager forward pass, each alone, and through rayqd's path together.
The fastest way that gives the same states is taken. Nothing is decided by a model's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError
from rayqd.model import packed_attention
from rayqd.model.forward.call import states_of_rows
from rayqd.model.forward.head_form import TOLERANCE, distance, find_head_form, is_close
from rayqd.model.forward.mode import Batching, ForwardMode, HeadForm, StateSource
from rayqd.model.forward.rotary import frequency_class, reset_frequencies
from rayqd.model.model_class import auto_class
from rayqd.model.tiny import VOCAB_SIZE, make_tiny, values_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Tokens of the rows: below and above windows and the length that a rotary embedding was trained for, out of order.
_LENGTHS = (13, 41, 27)
_PREFIX = 20  # tokens of a row that must not see the seven that follow
_NOISE = 0.1  # standard deviation of what is added to every weight, so that norms, biases and sinks are not neutral
# Factors of the matrices: with larger ones attention scores reach the caps and saturations that real models reach.
_SCALES = (1.0, 4.0)
# From the fastest to the slowest.
_WAYS = (
    (Batching.PACKED, packed_attention.NAME),
    (Batching.PADDED, "sdpa"),
    (Batching.PADDED, "eager"),
    (Batching.ALONE, "sdpa"),
    (Batching.ALONE, "eager"),
)
_QUANTIZATION = "quantization_config"


def find_mode(config: PreTrainedConfig) -> ForwardMode:
    """Return how models of `config` are run.

    Raises ModelError, with the measured difference, where no way gives what the model itself computes.
    """
    values = values_of(config)
    values.pop(_QUANTIZATION, None)
    return _find_mode(type(config), json.dumps(values, default=str, sort_keys=True))


@lru_cache(maxsize=16)
def _find_mode(config_type: type[PreTrainedConfig], values: str) -> ForwardMode:
    name = config_type.__name__.removesuffix("Config")
    with quiet_libraries(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        try:
            own = make_random(config_type.from_dict(json.loads(values)))
            weights = {name: tensor.clone() for name, tensor in own.state_dict().items()}
            return _Probe(own, weights).run()
        except ModelError as error:
            raise ModelError(f"{name} models cannot be distilled: {error}") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{name} models cannot be tried on a small copy, so nothing would say whether their numbers are right: "
                f"{type(error).__name__}: {reason}"
            ) from error


class _Probe:
    """A tiny model, its rows, and the states that it computes of each of them alone."""

    def __init__(self, own: PreTrainedModel, weights: dict[str, Tensor]) -> None:
        self._own, self._weights, self._config = own, weights, own.config
        self._rows = random_rows(own)

    @torch.no_grad()
    def run(self) -> ForwardMode:
        """Return the fastest way whose states are right."""
        self._check_causal()
        source, head = find_head_form(self._own, self._rows[0][None])
        expected = self._expect(source, head)
        reasons: list[str] = []
        for batching, attention in _WAYS:
            reason = reasons[0] if reasons else ""
            mode = ForwardMode(batching=batching, attention=attention, states=source, head=head, reason=reason)
            try:
                error = self._error(mode, expected)
            except Exception as exception:  # noqa: BLE001 (whatever its code raises on inputs that it does not take)
                reasons.append(_explain(exception))
                continue
            if error <= TOLERANCE:
                return replace(mode, own_attention=self._own_attention(mode, expected))
            reasons.append(f"states off by {error:.2g} of their size on a small copy")
        raise ModelError(f"its states are none that the model computes of a row alone: {reasons[-1]}")

    def _expect(self, source: StateSource, head: HeadForm) -> list[list[Tensor]]:
        """Return the states of each row alone, for each set of weights that does not overflow."""
        alone = ForwardMode(batching=Batching.ALONE, attention="eager", states=source, head=head)
        expected: list[list[Tensor]] = []
        for scale in _SCALES:
            self._own.load_state_dict(_scaled(self._weights, scale))
            expected.append([states_of_rows(self._own, [row], alone) for row in self._rows])
        return expected

    def _own_attention(self, mode: ForwardMode, expected: Sequence[Sequence[Tensor]]) -> str:
        """Return "sdpa" where it computes what eager attention does; it drops caps and sinks in silence."""
        if not mode.is_packed:
            return mode.attention
        try:
            error = self._error(replace(mode, batching=Batching.ALONE, attention="sdpa"), expected)
        except (ImportError, ValueError):  # the architecture has none
            return "eager"
        return "sdpa" if error <= TOLERANCE else "eager"

    def _check_causal(self) -> None:
        """Raise ModelError where a token's logits depend on those that follow it."""
        row = self._rows[2]
        reset_frequencies(self._own)
        whole, prefix = (_logits(self._own, ids)[:, :_PREFIX] for ids in (row, row[:_PREFIX]))
        if not bool(whole.isfinite().all()):
            raise ModelError("a small random copy computes inf or nan")
        if not is_close(prefix, whole):
            raise ModelError(
                f"its logits depend on tokens that follow (off by {distance(prefix, whole):.2g} of their size): "
                "it is no causal language model as it is configured"
            )

    def _error(self, mode: ForwardMode, expected: Sequence[Sequence[Tensor]]) -> float:
        """Return the largest difference of any row's states from `expected`, as a share of their size."""
        model = auto_class(self._config).from_config(self._config, attn_implementation=mode.attention)
        model.eval()
        errors: list[float] = []
        for scale, states in zip(_SCALES, expected, strict=True):
            model.load_state_dict(_scaled(self._weights, scale))
            errors.append(self._error_of(model, mode, states))
        return max(errors)

    def _error_of(self, model: PreTrainedModel, mode: ForwardMode, expected: Sequence[Tensor]) -> float:
        errors: list[float] = []
        for indices in _batches(model, mode):
            states = states_of_rows(model, [self._rows[i] for i in indices], mode)
            parts = states.split([_LENGTHS[i] for i in indices])
            pairs = [(part, expected[i]) for i, part in zip(indices, parts, strict=True)]
            errors += [distance(part, own) for part, own in pairs if bool(own.isfinite().all())]
        return max(errors, default=0.0)


def _scaled(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the weights with every matrix times `scale`."""
    return {name: weight * scale if weight.dim() > 1 else weight for name, weight in weights.items()}


def _explain(exception: Exception) -> str:
    if isinstance(exception, ModelError):
        return str(exception)
    if isinstance(exception, KeyError):  # of its own table of attention classes
        return "its attention cannot be exchanged for another"
    return f"{type(exception).__name__}: {' '.join(str(exception).split())[:160]}"


def _batches(model: PreTrainedModel, mode: ForwardMode) -> list[list[int]]:
    """Put together whatever rows may be put together."""
    indices = list(range(len(_LENGTHS)))
    if mode.batching is Batching.ALONE:
        return [[i] for i in indices]
    classify = frequency_class(model)
    classes: dict[tuple[int, ...], list[int]] = {}
    for i in indices:
        classes.setdefault(classify(_LENGTHS[i]) if classify else (), []).append(i)
    return list(classes.values())


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return cast(Any, model)(input_ids=ids[None], use_cache=False).logits


def make_random(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a tiny random model of `config`, float32 and eager, none of whose weights is what it is initialized to."""
    tiny = make_tiny(config)
    tiny.dtype = torch.float32
    model = auto_class(tiny).from_config(tiny, attn_implementation="eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_NOISE)
    return model.eval()


def random_rows(model: PreTrainedModel) -> list[Tensor]:
    """Return rows of token ids for a tiny model, below and above its windows; of few ids where the model has few."""
    generator = torch.Generator().manual_seed(0)
    num_ids = min(VOCAB_SIZE - 8, len(cast("Tensor", model.get_input_embeddings().weight)))
    return [torch.randint(min(3, num_ids - 1), num_ids, (length,), generator=generator) for length in _LENGTHS]
