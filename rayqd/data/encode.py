"""Rendered rows as tokens, many at a time: the prompt as it stands alone, as an engine meets it, and what follows.

The two are the tokens of both together wherever those have a boundary there. Where they have none (a completion that
starts with the line break that the prompt ends with), the completion is tokenized by itself. It is not always, because
some tokenizers put a space before whatever they are given.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|>
                                    ending

A template's prompts have one ending, from their last special token on. The text before such a token is tokenized in the
same way whatever follows it, so that the tokens of a prompt are, up to there, those of prompt and completion together,
and then the ending's own, which are known from an earlier prompt. That spares one call of two. Where the ending starts
is counted: its special token stands in prompt and completion as often as among the tokens. So nobody asks where tokens
stand, which takes a tokenizer a quarter of its time. The first rows of every ending are tokenized in all ways, and
where they ever differ all are tokenized in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rayqd.data.fast_tokenizer import FastTokenizer, calls_backend
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


@dataclass(slots=True)
class _Ending:
    """What prompts end with, from their last special token on."""

    text: str
    token: str  # the special one, with which it begins
    ids: list[int]
    num_checked: int = 0

    def prompt_ids(self, row: RenderedRow, ids: list[int]) -> list[int] | None:
        """Return the prompt's tokens by `ids`, those of prompt and completion; None where they do not tell."""
        token_id, num_before = self.ids[0], row.prompt.count(self.token)
        if ids.count(token_id) != num_before + row.completion.count(self.token):
            return None  # the text of the token is not always the token
        start = -1
        for _ in range(num_before):
            start = ids.index(token_id, start + 1)
        return ids[:start] + self.ids


@dataclass(slots=True)
class Encoder:
    """Tokenizes rendered rows, and remembers how their prompts end."""

    tokenizer: PreTrainedTokenizerBase
    _endings: list[_Ending] = field(default_factory=list[_Ending], init=False)
    _has_endings: bool = field(init=False)
    _fast: FastTokenizer | None = field(init=False)  # where it gives what a call of the tokenizer gives

    def __post_init__(self) -> None:
        self._has_endings = bool(self.tokenizer.is_fast)
        self._fast = FastTokenizer(self.tokenizer) if calls_backend(self.tokenizer) else None

    def encode(self, rows: Sequence[RenderedRow]) -> list[EncodedRow]:
        """Return the tokens of every row. Raises ModelError for spans where the tokenizer does not tell of tokens."""
        endings = [self._ending_of(row) for row in rows]
        known = [i for i, ending in enumerate(endings) if ending is not None and ending.num_checked >= _NUM_CHECKED]
        if len(known) == len(rows) and self._fast:
            return self._encode_known(rows, [ending for ending in endings if ending is not None], self._fast)
        alone = sorted(set(range(len(rows))) - set(known))
        texts = tokenize(self.tokenizer, [*(r.prompt + r.completion for r in rows), *(rows[i].prompt for i in alone)])
        if self._fast and any(endings):
            bare = self._fast([r.prompt + r.completion for r in rows])
            if any(ids != text.ids for ids, text in zip(bare, texts, strict=False)):
                self._fast = None
        prompts = dict(zip(alone, texts[len(rows) :], strict=True))
        encoded: list[EncodedRow] = []
        for index, (row, ending) in enumerate(zip(rows, endings, strict=True)):
            both, prompt = texts[index].ids, prompts.get(index)
            short = None if ending is None else ending.prompt_ids(row, both)
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
            prompt_ids = prompt.ids if prompt is not None else cast("list[int]", short)
            encoded.append(self._join(row, both, prompt_ids, prompt))
        return encoded

    def _encode_known(
        self, rows: Sequence[RenderedRow], endings: Sequence[_Ending], fast: FastTokenizer
    ) -> list[EncodedRow]:
        """Return the tokens of rows whose endings were tokenized in both ways often enough."""
        encoded: list[EncodedRow] = []
        every_ids = fast([row.prompt + row.completion for row in rows])
        for row, ending, ids in zip(rows, endings, every_ids, strict=True):
            prompt_ids = ending.prompt_ids(row, ids)
            if prompt_ids is None:
                prompt_ids = tokenize(self.tokenizer, [row.prompt])[0].ids
            encoded.append(self._join(row, ids, prompt_ids))
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
        if start < 0 or len(ending) > _LONGEST_ENDING or any(ending == known.text for known in self._endings):
            return
        at = None if prompt.encoding is None else prompt.encoding.char_to_token(start)
        if at is not None and prompt.ids[at] == self.tokenizer.convert_tokens_to_ids(token):
            self._endings.append(_Ending(text=ending, token=token, ids=prompt.ids[at:]))

    def _join(
        self, row: RenderedRow, both: list[int], prompt_ids: list[int], prompt: _Text | None = None
    ) -> EncodedRow:
        if both[: len(prompt_ids)] == prompt_ids:
            completion_ids = both[len(prompt_ids) :]
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
