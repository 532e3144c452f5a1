"""From the tokens that a model wrote back to text: rows of a data set that `data.source` reads.

text and template make tokens again when the data set is read, and now and then other ones: a sampled token may be half
a character, split a word as the tokenizer never would, or end the turn in another way than the template does.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rayqd.data.prompts import Prompt
from rayqd.data.sources import CUT, FINISH_REASON, Message, parse_row
from rayqd.data.template import end_of_answer, tokenize_example
from rayqd.errors import DataError
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF_A_CHARACTER = "\ufffd"


class AnswerWriter:
    """Makes rows of completions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._end = end_of_answer(tokenizer)

    def row(self, prompt: Prompt, completion_ids: IntArray) -> dict[str, Any] | None:
        """The conversation with its answer, and what is known of that; None if no reader would take it, being empty.

        `same_tokens` says whether who reads the row gets exactly `completion_ids`.
        """
        is_cut = int(completion_ids[-1]) not in self._end_ids
        answer: Message = {"role": "assistant", "content": self._text(prompt.token_ids, completion_ids, is_cut=is_cut)}
        row = {
            "messages": [*prompt.messages, answer],
            FINISH_REASON: CUT if is_cut else "stop",
            "row": prompt.row,
            "num_tokens": len(completion_ids),
        }
        try:
            example = tokenize_example(self._tokenizer, parse_row(row), prompt.row)
        except DataError:
            return None
        return row | {"same_tokens": _is_same(example, prompt.token_ids, completion_ids)}

    def _text(self, prompt_ids: IntArray, completion_ids: IntArray, *, is_cut: bool) -> str:
        text = self._after(prompt_ids, completion_ids)
        if is_cut:
            return text.rstrip(_HALF_A_CHARACTER)
        if text.endswith(self._end):
            return text.removesuffix(self._end)
        return self._after(prompt_ids, completion_ids[:-1])

    def _after(self, prompt_ids: IntArray, completion_ids: IntArray) -> str:
        """Text of the completion where it stands: some tokenizers drop the space before a text's first word."""
        prompt, whole = (self._decode(ids) for ids in (prompt_ids, np.concatenate([prompt_ids, completion_ids])))
        return whole.removeprefix(prompt) if whole.startswith(prompt) else self._decode(completion_ids)

    def _decode(self, ids: IntArray) -> str:
        return cast(Any, self._tokenizer).decode(ids.tolist(), clean_up_tokenization_spaces=False)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, directory: Path) -> tuple[int, ...]:
    """Tokens that end an answer of the model in `directory`: the chat template's end of turn, the tokenizer's end of
    text, and those that generation_config.json names, or else config.json."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(directory).eos_token_id
    else:
        named = getattr(AutoConfig.from_pretrained(directory), "eos_token_id", None)
    ids: set[int] = {named} if isinstance(named, int) else set(named or ())
    ids.add(cast(Any, tokenizer)(end_of_answer(tokenizer), add_special_tokens=False)["input_ids"][-1])
    if tokenizer.eos_token_id is not None:
        ids.add(cast(int, tokenizer.eos_token_id))
    return tuple(sorted(ids))


def _is_same(example: Example, prompt_ids: IntArray, completion_ids: IntArray) -> bool:
    return np.array_equal(example.prompt_ids, prompt_ids) and np.array_equal(example.completion_ids, completion_ids)
