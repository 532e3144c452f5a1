"""From sampled token ids back to text: rows of a data set that `data.source` reads.

Text and template make tokens again when the data set is read, and now and then other ones: a sampled token may be half
a character, split a word as the tokenizer never would, or end the turn in another way than the template does.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np

from rayqd.data.conversation import CUT, Message, parse_row
from rayqd.data.prompts import Prompt
from rayqd.data.template import end_of_turn, tokenize_example
from rayqd.errors import DataError
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT_CHARACTER = "\ufffd"  # what half a character decodes to


class CompletionRow(TypedDict):
    """A row that `rayqd generate` writes."""

    messages: list[Message]  # the prompt's, then the completion as the assistant's
    finish_reason: str  # "stop", or "length" for a completion that was cut
    row: int  # position of the prompt in its source
    num_tokens: int  # sampled, the end included
    same_tokens: bool  # whether who reads the row gets exactly the sampled token ids


class Detokenizer:
    """Makes rows of sampled completions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._end_of_turn = end_of_turn(tokenizer)

    def to_row(self, prompt: Prompt, completion_ids: IntArray) -> CompletionRow | None:
        """Return the conversation with its completion [T]; None where that is empty, which no reader would take."""
        is_cut = int(completion_ids[-1]) not in self._end_ids
        text = self._text(prompt.token_ids, completion_ids, is_cut=is_cut)
        row = CompletionRow(
            messages=[*prompt.messages, {"role": "assistant", "content": text}],
            finish_reason=CUT if is_cut else "stop",
            row=prompt.row,
            num_tokens=len(completion_ids),
            same_tokens=False,
        )
        try:
            example = tokenize_example(self._tokenizer, parse_row(row), prompt.row)
        except DataError:
            return None
        row["same_tokens"] = _is_same(example, prompt.token_ids, completion_ids)
        return row

    def _text(self, prompt_ids: IntArray, completion_ids: IntArray, *, is_cut: bool) -> str:
        text = self._decode_after(prompt_ids, completion_ids)
        if is_cut:
            return text.rstrip(_REPLACEMENT_CHARACTER)
        if text.endswith(self._end_of_turn):
            return text.removesuffix(self._end_of_turn)
        return self._decode_after(prompt_ids, completion_ids[:-1])

    def _decode_after(self, prompt_ids: IntArray, completion_ids: IntArray) -> str:
        """Decode the completion where it stands: some tokenizers drop the space before a text's first word."""
        prompt, both = (self._decode(ids) for ids in (prompt_ids, np.concatenate([prompt_ids, completion_ids])))
        return both.removeprefix(prompt) if both.startswith(prompt) else self._decode(completion_ids)

    def _decode(self, ids: IntArray) -> str:
        return cast(Any, self._tokenizer).decode(ids.tolist(), clean_up_tokenization_spaces=False)


def end_token_ids(tokenizer: PreTrainedTokenizerBase, directory: Path) -> tuple[int, ...]:
    """Return the tokens that end a completion of the model in `directory`: the chat template's end of turn, the
    tokenizer's end of text, and those that generation_config.json names, or else config.json."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(directory).eos_token_id
    else:
        named = getattr(AutoConfig.from_pretrained(directory), "eos_token_id", None)
    ids: set[int] = {named} if isinstance(named, int) else set(named or ())
    ids.add(cast(Any, tokenizer)(end_of_turn(tokenizer), add_special_tokens=False)["input_ids"][-1])
    if tokenizer.eos_token_id is not None:
        ids.add(cast(int, tokenizer.eos_token_id))
    return tuple(sorted(ids))


def _is_same(example: Example, prompt_ids: IntArray, completion_ids: IntArray) -> bool:
    return np.array_equal(example.prompt_ids, prompt_ids) and np.array_equal(example.completion_ids, completion_ids)
