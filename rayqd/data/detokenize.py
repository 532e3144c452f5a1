"""From sampled token ids back to text: rows of a data set that `data.source` reads.

Text and template make tokens again when the data set is read, and now and then other ones: a sampled token may be half
a character, split a word as the tokenizer never would, or end the turn in another way than the template does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import numpy as np

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.conversation import CUT, parse_row
from rayqd.data.messages import Conversation, Json, Message
from rayqd.data.opening import opened_thought
from rayqd.data.prompts import Prompt
from rayqd.data.template import PLAIN, end_of_turn, tokenize_example
from rayqd.errors import DataError
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT_CHARACTER = "\ufffd"  # what half a character decodes to


class CompletionRow(TypedDict):
    """A row that `rayqd generate` writes."""

    messages: list[Message]  # the prompt's, then the completion as the assistant's
    tools: NotRequired[list[Json]]  # the prompt's
    finish_reason: str  # "stop", or "length" for a completion that was cut
    row: int  # position of the prompt in its source
    num_tokens: int  # sampled, the end included
    same_tokens: bool  # whether who reads the row gets exactly the sampled token ids


class Detokenizer:
    """Makes rows of sampled completions."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Collection[int],
        chat: ChatSettings = PLAIN,
        stop: Sequence[str] = (),
    ) -> None:
        """Take what ends a completion: tokens, and texts, which are left out of the row."""
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self._stop = tuple(stop)
        self._chat = chat
        self._end_of_turn = end_of_turn(tokenizer, chat)

    def to_row(self, prompt: Prompt, completion_ids: IntArray) -> CompletionRow | None:
        """Return the conversation with its completion [T]; None where that is empty, which no reader would take."""
        is_cut = int(completion_ids[-1]) not in self._end_ids
        text = self._text(prompt.token_ids, completion_ids, is_cut=is_cut)
        if is_cut and (end := min((place for s in self._stop if (place := text.find(s)) >= 0), default=-1)) >= 0:
            text, is_cut = text[:end], False
        conversation = Conversation.of(prompt.messages)
        text = opened_thought(self._tokenizer, self._chat, conversation) + text
        row = CompletionRow(
            messages=[*conversation, {"role": "assistant", "content": text}],
            finish_reason=CUT if is_cut else "stop",
            row=prompt.row,
            num_tokens=len(completion_ids),
            same_tokens=False,
        )
        if conversation.tools:
            row["tools"] = conversation.tools
        try:
            example = tokenize_example(self._tokenizer, parse_row(row), prompt.row, self._chat)
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


def _is_same(example: Example, prompt_ids: IntArray, completion_ids: IntArray) -> bool:
    return np.array_equal(example.prompt_ids, prompt_ids) and np.array_equal(example.completion_ids, completion_ids)
