"""Rendered rows as tokens, many at a time: the prompt as it stands alone, as an engine meets it, and what follows.

The two are the tokens of both together wherever those have a boundary there. Where they have none (a completion that
starts with the line break that the prompt ends with), the completion is tokenized by itself. It is not always, because
some tokenizers put a space before whatever they are given.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|>
                                    ending

A template's prompts have one ending, from their last special token on. The text before such a token is tokenized in the
same way whatever follows it, so that the tokens of a prompt are, up to there, those of prompt and completion together,
and then the ending's own, which are known from an earlier prompt. That spares one call of two. The first rows of every
ending are tokenized in both ways, and where they ever differ all are tokenized in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rayqd.data.render import name_of
from rayqd.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # characters

_NUM_CHECKED = 64  # rows of an ending that are tokenized in both ways
_MOST_ENDINGS = 8
_LONGEST_ENDING = 256  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRow:
    """The text of a row."""

    prompt: str
    completion: str = ""  # with its end of turn; empty where there is no answer
    spans: Sequence[Span] = ()  # of the prompt, which are trained on as well
    has_answer: bool = True  # whether the completion is trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """The tokens of a row."""

    prompt_ids: list[int]
    completion_ids: list[int]
    trained: NDArray[np.bool_] | None = None  # [P + C]; None: the completion, all of it


@dataclass(slots=True)
class _Text:
    """A text's tokens."""

    ids: list[int]
    encoding: Encoding | None  # tells where they stand; a slow tokenizer has none

    def token_at(self, character: int) -> int | None:
        return None if self.encoding is None else self.encoding.char_to_token(character)


@dataclass(slots=True)
class _Ending:
    """What prompts end with, from their last special token on."""

    text: str
    ids: list[int]
    num_checked: int = 0

    def prompt_ids(self, prompt: str, both: _Text) -> list[int] | None:
        """Return the prompt's tokens by those of prompt and completion; None where they do not tell."""
        start = both.token_at(len(prompt) - len(self.text))
        if start is None or both.ids[start] != self.ids[0]:
            return None
        return both.ids[:start] + self.ids


@dataclass(slots=True)
class Encoder:
    """Tokenizes rendered rows, and remembers how their prompts end."""

    tokenizer: PreTrainedTokenizerBase
    _endings: list[_Ending] = field(default_factory=list[_Ending], init=False)
    _has_endings: bool = field(init=False)

    def __post_init__(self) -> None:
        self._has_endings = bool(self.tokenizer.is_fast)

    def encode(self, rows: Sequence[RenderedRow]) -> list[EncodedRow]:
        """Return the tokens of every row. Raises ModelError for spans where the tokenizer does not tell of tokens."""
        endings = [self._ending_of(row) for row in rows]
        alone = [i for i, ending in enumerate(endings) if ending is None or ending.num_checked < _NUM_CHECKED]
        texts = tokenize(self.tokenizer, [*(r.prompt + r.completion for r in rows), *(rows[i].prompt for i in alone)])
        prompts = dict(zip(alone, texts[len(rows) :], strict=True))
        encoded: list[EncodedRow] = []
        for index, (row, ending) in enumerate(zip(rows, endings, strict=True)):
            both, prompt = texts[index], prompts.get(index)
            short = None if ending is None else ending.prompt_ids(row.prompt, both)
            if short is None or prompt is not None:
                prompt = prompt or tokenize(self.tokenizer, [row.prompt])[0]
                if ending is not None and short is not None and short != prompt.ids:
                    self._has_endings = False
                    self._endings.clear()
                    return self.encode(rows)
                if ending is not None:
                    ending.num_checked += 1
                else:
                    self._learn_ending(row, prompt)
            encoded.append(self._join(row, both, prompt, short))
        return encoded

    def _ending_of(self, row: RenderedRow) -> _Ending | None:
        """Return how the prompt ends, if an earlier one did so and nothing but its tokens is asked for."""
        if row.spans:
            return None
        return next((ending for ending in self._endings if row.prompt.endswith(ending.text)), None)

    def _learn_ending(self, row: RenderedRow, prompt: _Text) -> None:
        if not self._has_endings or row.spans or len(self._endings) >= _MOST_ENDINGS:
            return
        places = [(row.prompt.rfind(token), len(token), token) for token in _boundaries(self.tokenizer)]
        start, _, token = max(places, default=(-1, 0, ""))
        ending = row.prompt[start:]
        at = prompt.token_at(start) if start >= 0 else None
        if at is None or len(ending) > _LONGEST_ENDING or any(ending == known.text for known in self._endings):
            return
        if prompt.ids[at] == self.tokenizer.convert_tokens_to_ids(token):
            self._endings.append(_Ending(text=ending, ids=prompt.ids[at:]))

    def _join(self, row: RenderedRow, both: _Text, prompt: _Text | None, short: list[int] | None) -> EncodedRow:
        prompt_ids = cast("list[int]", short) if prompt is None else prompt.ids
        if both.ids[: len(prompt_ids)] == prompt_ids:
            completion_ids = both.ids[len(prompt_ids) :]
        else:
            completion_ids = tokenize(self.tokenizer, [row.completion])[0].ids
        if row.has_answer and not row.spans:
            return EncodedRow(prompt_ids=prompt_ids, completion_ids=completion_ids)
        earlier = np.zeros(len(prompt_ids), dtype=np.bool_)
        if row.spans and prompt is not None:
            earlier = mark_tokens(self.tokenizer, prompt.encoding, row.spans)
        trained = np.concatenate([earlier, np.full(len(completion_ids), row.has_answer)])
        return EncodedRow(prompt_ids=prompt_ids, completion_ids=completion_ids, trained=trained)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False) -> list[_Text]:
    """Return the tokens of every text; `special` adds those that the tokenizer puts around one."""
    if not texts:
        return []
    encoded = cast(Any, tokenizer)(
        list(texts),
        add_special_tokens=special,
        verbose=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids = cast("list[list[int]]", encoded["input_ids"])
    encodings = cast("list[Encoding | None]", encoded.encodings or [None] * len(ids))
    return [_Text(ids=own, encoding=encoding) for own, encoding in zip(ids, encodings, strict=True)]


def mark_tokens(
    tokenizer: PreTrainedTokenizerBase, encoding: Encoding | None, spans: Sequence[Span]
) -> NDArray[np.bool_]:
    """Return [T], true for the tokens of a text that lie wholly within one of `spans`.

    Raises ModelError for a tokenizer that does not tell where its tokens stand.
    """
    if encoding is None:
        raise ModelError(f'{name_of(tokenizer)} does not tell where its tokens stand: set data.train_on = "last"')
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    inside = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in spans:
        inside |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 0] < offsets[:, 1])
    return inside


def _boundaries(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the special tokens at which a text is cut before anything else is done with it."""
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
    ]
