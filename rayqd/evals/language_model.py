"""Who answers lm-evaluation-harness: a model of transformers here, an engine in `rayqd.rollout.language_model`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import JsonValue

from rayqd.evals.answers import AnswerCount, beating, counting_model
from rayqd.model.decoder_layers import eager_layers
from rayqd.model.forward.of_model import mode_of
from rayqd.stall import NoWatch, Watch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How questions are put, beside what they are."""

    batch_size: int  # sequences at once
    chat_variables: Mapping[str, JsonValue | Callable[[str], str]]  # of the chat template
    think_end: str | None  # what ends the thoughts of a model that thinks


class LanguageModel(Protocol):
    """A model with its tokenizer."""

    def answering(self, asking: Asking, answers: AnswerCount) -> AbstractContextManager[Any]:
        """Return what yields lm-eval's LM, which counts its `answers`; afterwards the model is as it was before."""
        ...


class TransformersModel:
    """A model in this process, as `lm_eval run --model hf` runs it."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, watch: Watch | None = None) -> None:
        """`watch` watches over the model's work; the host's is who runs benchmarks'."""
        self._model, self._tokenizer, self._watch = model, tokenizer, watch or NoWatch()

    @contextmanager
    def answering(self, asking: Asking, answers: AnswerCount) -> Generator[Any]:
        """Yield lm-eval's model, in evaluation mode, uncompiled, and with transformers' own attention."""
        model = self._model
        with own_attention(model), _kept_mode(model), eager_layers(model), beating(model, self._watch):
            yield counting_model(
                answers,
                self._watch,
                pretrained=model,
                tokenizer=self._tokenizer,
                batch_size=asking.batch_size,
                chat_template_args=dict(asking.chat_variables),
                think_end_token=asking.think_end,
            )


@contextlib.contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Switch to transformers' own: lm-eval pads its batches and generates with a cache, which packed rows do not."""
    before = model.config._attn_implementation
    model.set_attn_implementation(mode_of(model).own_attention)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _kept_mode(model: nn.Module) -> Iterator[None]:
    """Give every module back its mode, which lm-eval sets to evaluation: layers with checkpoints train in theirs."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, is_training in before:
            module.training = is_training
