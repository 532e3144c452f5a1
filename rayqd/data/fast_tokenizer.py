"""Token ids of many texts and nothing else of them, in the quickest way that gives what the tokenizer gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from rayqd.data.pieces import NotUnderstoodError, Pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUM_BEFORE = 1024  # texts, before it is worth it to learn how a tokenizer cuts them
_NUM_CHECKED = 512  # texts that are tokenized in both ways
_MOST_MISSED = 0.15  # of the pieces: more cost what the others spare, as in languages without spaces between words


@dataclass(slots=True)
class FastTokenizer:
    """Tokenizes texts with a tokenizer that `calls_backend`; the first ones as it does, then by their pieces."""

    tokenizer: PreTrainedTokenizerBase
    _num_seen: int = field(default=0, init=False)
    _pieces: Pieces | None = field(default=None, init=False)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of every text."""
        before, self._num_seen = self._num_seen, self._num_seen + len(texts)
        if before < _NUM_BEFORE <= self._num_seen:
            self._pieces = _pieces_of(self.tokenizer)
        if self._pieces is None:
            return tokenize_fast(self.tokenizer, texts)
        num_cut, num_missed = self._pieces.num_cut, self._pieces.num_missed
        found = [self._pieces.encode(text) for text in texts]
        is_checked = before < _NUM_BEFORE + _NUM_CHECKED
        left = [i for i, ids in enumerate(found) if ids is None or is_checked]
        whole = dict(zip(left, tokenize_fast(self.tokenizer, [texts[i] for i in left]), strict=True))
        made = [whole[i] if i in whole else cast("list[int]", ids) for i, ids in enumerate(found)]
        is_right = all(ids is None or ids == own for ids, own in zip(found, made, strict=True))
        num_cut, num_missed = self._pieces.num_cut - num_cut, self._pieces.num_missed - num_missed
        if not is_right or (not is_checked and num_missed > _MOST_MISSED * num_cut):
            self._pieces = None
        return made


def calls_backend(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a call of the tokenizer is one of the `tokenizers` library, with no code of its own before it."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    return issubclass(kind, PreTrainedTokenizerFast) and all(
        getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus")
    )


def tokenize_fast(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of every text as a call of the tokenizer does, of one that `calls_backend`."""
    if not texts:
        return []
    backend = cast(Any, tokenizer).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = cast(Any, tokenizer).split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces | None:
    """Return None for a tokenizer whose ways are not imitated."""
    if cast(Any, tokenizer).split_special_tokens:
        return None
    try:
        return Pieces(tokenizer)
    except NotUnderstoodError:
        return None
