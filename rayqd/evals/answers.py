"""How many of a model's own answers the limit of tokens cut, which lm-eval scores as if they were whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from rayqd.model.decoder_layers import decoder_layers
from rayqd.stall import Watch


@dataclass(slots=True)
class AnswerCount:
    """What a model wrote on a benchmark."""

    num_all: int = 0
    num_cut: int = 0  # that reached the task's limit before an end of text or one of its stops
    num_shortened: int = 0  # questions of either kind that lost their beginning, as the model takes no more tokens
    num_windowed: int = 0  # texts of which an engine reads no more than a window at a time
    window: int = 0  # its tokens


def counting_model(answers: AnswerCount, watch: Watch, **arguments: Any) -> Any:
    """Return lm-eval's model of transformers, made with `arguments`, that counts its `answers`.

    `watch` watches over its computation, of which forward passes are to tell it; see `beating`.
    """
    from lm_eval.models.huggingface import HFLM

    base: Any = HFLM  # lm-eval's registry hides its parameters, and its attributes have no types

    class CountingHFLM(base):
        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
            with watch.working():
                written = super()._model_generate(context, max_length, stop, **kwargs).cpu()
            ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
            ends.update(_as_list(getattr(self.model.generation_config, "eos_token_id", None)))
            for row in written[:, context.shape[1] :].tolist():
                answers.num_all += 1
                is_long = len(row) >= max_length - context.shape[1]
                is_ended = bool(ends & set(row)) or any(s in self.tok_decode(row) for s in stop if s)
                answers.num_cut += is_long and not is_ended
            return written

        def _loglikelihood_tokens(self, *requests: Any, **settings: Any) -> Any:
            with watch.working():
                return super()._loglikelihood_tokens(*requests, **settings)

    return CountingHFLM(**arguments)


@contextmanager
def beating(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Tell `watch` of every decoder layer that `model` comes to."""
    hooks = [layer.register_forward_pre_hook(lambda *_: watch.beat()) for layer in decoder_layers(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids
