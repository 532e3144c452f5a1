"""Requests of one length: prompts and answers of the quickstart's rows, cut to exactly as many tokens as are asked for.

They are tokenized once, as a run of rayqd tokenizes its data, and every peer is given the tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rayqd.bench.head_to_head.workload import Request
from rayqd.config.sections import DataConfig
from rayqd.data.messages import Message
from rayqd.data.sources import read_rows
from rayqd.data.template import tokenize_example
from rayqd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_PROMPT_TOKENS = 96  # of what the user says
_TRIES = 8  # tokens by which a cut may move until the template's text has the length that is asked for


def make_requests(tokenizer: PreTrainedTokenizerBase, count: int, new_tokens: int) -> tuple[Request, ...]:
    """Return `count` different requests whose answers have `new_tokens` tokens, the end of the turn included.

    Raises ConfigError where the chat template writes no answer of that length.
    """
    rows = list(_rows())
    made: list[Request] = []
    for number in itertools.count():
        request = _make(tokenizer, rows, number, new_tokens)
        if request is not None:
            made.append(request)
        if len(made) == count:
            return tuple(made)
        if number > 2 * count + len(rows):
            raise ConfigError(f"flag --sequences: the chat template writes no answers of {new_tokens} tokens")
    raise AssertionError


def _rows() -> Iterator[tuple[str, str]]:
    """Return what the user says and what the assistant answers, of every row of one turn."""
    rows = read_rows(DataConfig(source="quickstart"))
    for index in range(len(rows)):
        messages = rows.row(index)
        if messages and [message["role"] for message in messages[-2:]] == ["user", "assistant"]:
            yield str(messages[-2]["content"]), str(messages[-1]["content"])


def _make(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, str]], number: int, new_tokens: int
) -> Request | None:
    prompt = _cut(tokenizer, f"{number + 1}. {rows[number % len(rows)][0]}", _MAX_PROMPT_TOKENS).strip()
    text = _long_text(tokenizer, rows, number, new_tokens + _TRIES)
    for moved in sorted(range(-_TRIES, _TRIES), key=abs):
        answer = _cut(tokenizer, text, max(1, new_tokens - 1 + moved)).strip()
        try:
            messages: list[Message] = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            example = tokenize_example(tokenizer, messages, number)
        except DataError:
            continue
        if len(example.completion_ids) == new_tokens:
            return Request(
                prompt=prompt,
                answer=answer,
                prompt_ids=tuple(example.prompt_ids.tolist()),
                completion_ids=tuple(example.completion_ids.tolist()),
            )
    return None


def _long_text(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, str]], number: int, num_tokens: int
) -> str:
    """Return the answer of row `number`, and of the rows after it until it is long enough."""
    text = rows[number % len(rows)][1]
    for index in itertools.count(number + 1):
        if len(text) > 2 * num_tokens and len(_offsets(tokenizer, text)) > num_tokens:
            return text
        text += "\n\n" + rows[index % len(rows)][1]
    raise AssertionError


def _cut(tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int) -> str:
    offsets = _offsets(tokenizer, text)
    return text if len(offsets) <= num_tokens else text[: offsets[num_tokens - 1][1]]


def _offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
