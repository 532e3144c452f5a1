"""Of one source's rows, in a given order, the first so many that can be trained on, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayqd.config.sections import DataConfig
from rayqd.data.chat_settings import ChatSettings, chat_settings
from rayqd.data.example_set import ExampleSet
from rayqd.data.left_out import Reason
from rayqd.data.lengths import describe_lengths
from rayqd.data.messages import Conversation
from rayqd.data.row_key import row_key
from rayqd.data.sources import Rows
from rayqd.data.template import tokenize_example
from rayqd.errors import DataError
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnTokenized = Callable[[int, int], None]  # rows kept so far, and how many at most
_REPORT_EVERY = 64  # rows


def row_order(num_rows: int, seed: int) -> NDArray[np.int64]:
    """Return the seeded permutation of a source's rows in which a run looks at them."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(num_rows)


def select_examples(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    order: NDArray[np.int64],
    data: DataConfig,
    num_needed: int,
    *,
    exclude: int = 0,
    heldout: Collection[int] = frozenset(),
    on_tokenized: OnTokenized | None = None,
) -> ExampleSet:
    """Return up to `num_needed` examples of `rows`, looked at in `order`, after the first `exclude` ones kept.

    After those no row is taken whose key (`row_key`) is in `heldout`. Raises DataError if no example is left.
    """
    kept: list[Example] = []
    keys: list[int] = []
    shapes: dict[str, None] = {}
    chat = chat_settings(data)
    too_long: list[int] = []  # tokens
    for index in map(int, order):
        if len(kept) == exclude + num_needed:
            break
        messages = rows.row(index)
        if messages is None:
            continue
        conversation = Conversation.of(messages)
        key = row_key([*conversation, *(conversation.tools or ())])
        if len(kept) >= exclude and key in heldout:
            rows.leave_out(index, Reason.HELD_OUT, "it is also a held-out row, which is not trained on")
            continue
        example = _tokenize(tokenizer, rows, index, conversation, chat)
        if example is None:
            continue
        if what := _too_long(example, data):
            rows.leave_out(index, Reason.TOO_LONG, what)
            too_long.append(len(example.prompt_ids) + len(example.completion_ids))
            continue
        kept.append(example)
        keys.append(key)
        shapes[conversation.shape] = None
        if on_tokenized and len(kept) % _REPORT_EVERY == 0:
            on_tokenized(len(kept), min(exclude + num_needed, len(rows)))
    if len(kept) <= exclude:
        raise DataError(_explain_nothing_kept(rows, data, len(kept), too_long, exclude))
    return ExampleSet(
        examples=kept[exclude:],
        keys=np.asarray(keys[exclude:], dtype=np.uint64),
        source=rows.name,
        num_rows=len(rows),
        left_out=rows.left_out,
        shapes=tuple(filter(None, shapes)),
        remarks=rows.remarks,
    )


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, index: int, messages: Conversation, chat: ChatSettings
) -> Example | None:
    """Return None if the template refuses the row, and broken rows are skipped."""
    try:
        return tokenize_example(tokenizer, messages, index, chat)
    except DataError as error:
        rows.reject(index, str(error))
        return None


def _too_long(example: Example, data: DataConfig) -> str:
    """Say in what the example does not fit; "" where it does."""
    num_prompt, num_completion = len(example.prompt_ids), len(example.completion_ids)
    if num_prompt > data.max_length - data.min_room:
        return (
            f"the prompt has {num_prompt:,} tokens, which leaves less than data.min_room={data.min_room} of "
            f"data.max_length={data.max_length}"
        )
    if num_prompt + num_completion > data.max_length:
        return (
            f"prompt and completion have {num_prompt:,} and {num_completion:,} tokens, more than "
            f"data.max_length={data.max_length}"
        )
    return ""


def _explain_nothing_kept(rows: Rows, data: DataConfig, num_kept: int, too_long: list[int], exclude: int) -> str:
    fate = (
        f"of its {len(rows)} rows {rows.num_left_out(Reason.BROKEN)} are broken, {len(too_long)} do not fit "
        f"data.max_length={data.max_length} with data.min_room={data.min_room}"
    )
    if num_filtered := rows.num_left_out(Reason.FILTERED):
        fate = f"{fate}, {num_filtered} are left out by data.filter"
    if num_untrained := rows.num_left_out(Reason.UNTRAINED):
        fate = f"{fate}, {num_untrained} have answers of weight 0 alone"
    if num_heldout := rows.num_left_out(Reason.HELD_OUT):
        fate = f"{fate}, {num_heldout} are also held out"
    if too_long:
        fate = f"{fate} ({describe_lengths(too_long)})"
    if exclude:
        return (
            f"{rows.name} leaves nothing to train on: {fate}, and the {num_kept} others are held out "
            f"(eval.num_rows={exclude}); lower eval.num_rows, name an eval.source, or give more data"
        )
    first = next((f" (first: {part.first[0]})" for part in rows.left_out if part.reason is Reason.BROKEN), "")
    way_out = "give data that eval.source does not hold" if num_heldout else "raise data.max_length or give other data"
    return f"{rows.name} leaves no examples: {fate}{first}; {way_out}"
