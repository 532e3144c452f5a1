"""How many of a model's own answers the limit of tokens cut, which lm-eval scores as if they were whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class AnswerCount:
    """What a model wrote on a benchmark."""

    num_all: int = 0
    num_cut: int = 0  # that reached the task's limit before an end of text or one of its stops
    num_shortened: int = 0  # questions of either kind that lost their beginning, as the model takes no more tokens


def counting_model(answers: AnswerCount, **arguments: Any) -> Any:
    """Return lm-eval's model of transformers, made with `arguments`, that counts its `answers`."""
    from lm_eval.models.huggingface import HFLM

    base: Any = HFLM  # lm-eval's registry hides its parameters, and its attributes have no types

    class CountingHFLM(base):
        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
            written = super()._model_generate(context, max_length, stop, **kwargs)
            ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
            ends.update(_as_list(getattr(self.model.generation_config, "eos_token_id", None)))
            for row in written[:, context.shape[1] :].tolist():
                answers.num_all += 1
                is_long = len(row) >= max_length - context.shape[1]
                is_ended = bool(ends & set(row)) or any(s in self.tok_decode(row) for s in stop if s)
                answers.num_cut += is_long and not is_ended
            return written

    return CountingHFLM(**arguments)


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids
