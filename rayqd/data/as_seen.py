"""A row as the model sees it: its very tokens as text, special ones included, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from rayqd.runs.data_file import Piece, SeenRow
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def see_row(
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    end_ids: Collection[int],
    *,
    writer: str = "",
    source: str = "",
) -> SeenRow:
    """Return the tokens of `example` as text, by kind.

    Together the pieces are what the tokenizer decodes them to. `end_ids` end a completion. Where somebody else than the
    data is the `writer` of what is trained on, the data's own answer is left out.
    """
    ids, trained = _tokens(example)
    if writer:
        ids = example.prompt_ids
        trained = np.zeros(len(ids), dtype=bool)
    is_ended = trained.any() and int(ids[np.flatnonzero(trained)[-1]]) in end_ids
    return SeenRow(
        row=example.row,
        num_tokens=len(ids),
        num_trained=int(trained.sum()),
        pieces=_pieces(tokenizer, ids, trained),
        end=decode(tokenizer, ids[np.flatnonzero(trained)[-1:]]) if is_ended else "",
        source=source,
        writer=writer,
    )


def count_trained(example: Example) -> int:
    """Return how many tokens of the data's own row are trained on."""
    return len(example.completion_ids) if example.trained is None else int(example.trained.sum())


def decode(tokenizer: PreTrainedTokenizerBase, ids: IntArray) -> str:
    """Return the text of `ids`, special tokens included."""
    text = cast(Any, tokenizer).decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cast(str, text)


def _tokens(example: Example) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return the row's ids and which of them are trained on, [P + C]."""
    ids = np.concatenate([example.prompt_ids, example.completion_ids])
    if example.trained is not None:
        return ids, example.trained
    return ids, np.arange(len(ids)) >= len(example.prompt_ids)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: IntArray, trained: NDArray[np.bool_]) -> tuple[Piece, ...]:
    special = np.isin(ids, sorted(_special_ids(tokenizer)))
    changes = np.flatnonzero((trained[1:] != trained[:-1]) | (special[1:] != special[:-1])) + 1
    bounds = [0, *changes.tolist(), len(ids)]
    pieces: list[Piece] = []
    before = 0
    for start, end in pairwise(bounds):
        text = _decode_after(tokenizer, ids[before:start], ids[start:end])
        pieces.append(Piece(text=text, is_trained=bool(trained[start]), is_special=bool(special[start])))
        before = start
    return tuple(pieces)


def _decode_after(tokenizer: PreTrainedTokenizerBase, before: IntArray, ids: IntArray) -> str:
    """Decode `ids` where they stand: some tokenizers drop the space before a text's first word."""
    text, both = decode(tokenizer, before), decode(tokenizer, np.concatenate([before, ids]))
    return both.removeprefix(text) if both.startswith(text) else decode(tokenizer, ids)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(cast("list[int]", tokenizer.all_special_ids))
