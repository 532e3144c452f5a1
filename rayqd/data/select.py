"""Of one source's rows, in a given order, the first so many that can be trained on, as tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayqd.config.sections import DataConfig
from rayqd.data.chat_settings import chat_settings
from rayqd.data.example_set import ExampleSet
from rayqd.data.kept_tokens import MIN_ROWS, entry_for, largest_id_of, read_or_write
from rayqd.data.left_out import Fault, Reason
from rayqd.data.lengths import describe_lengths
from rayqd.data.packed_writer import PackedWriter
from rayqd.data.row_batches import tokenize_rows
from rayqd.data.row_tokenizer import RowTokenizer, TokenizedRows
from rayqd.data.sources import Rows
from rayqd.errors import DataError

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
    chat = chat_settings(data)
    tokenize = RowTokenizer(tokenizer=tokenizer, parse=rows.parse, chat=chat)
    total = min(exclude + num_needed, len(rows))

    def write(writer: PackedWriter) -> ExampleSet:
        selection = _Selection(rows, data, num_needed, exclude=exclude, heldout=heldout)
        with closing(tokenize_rows(rows, order, tokenize, selection.room)) as batches:
            for indices, tokenized in batches:
                num_before = selection.num_kept
                kept = selection.look_at(indices, tokenized)
                writer.append(tokenized.examples.take(kept), tokenized.keys[kept])
                if on_tokenized and selection.num_kept // _REPORT_EVERY > num_before // _REPORT_EVERY:
                    on_tokenized(selection.num_kept, total)
        examples, keys = writer.close()
        if selection.num_kept <= exclude:
            raise DataError(_explain_nothing_kept(rows, data, selection.num_kept, selection.too_long, exclude))
        return ExampleSet(
            examples=examples,
            keys=keys,
            source=rows.name,
            num_rows=len(rows),
            left_out=rows.left_out,
            shapes=tuple(filter(None, selection.shapes)),
            remarks=rows.remarks,
        )

    if total < MIN_ROWS:
        return write(PackedWriter())

    def find_entry() -> Path | None:
        needs = (num_needed, exclude)
        return entry_for(tokenizer, rows, order, data, chat, needs=needs, heldout=heldout)

    return read_or_write(find_entry, largest_id_of(tokenizer), write)


class _Selection:
    """Which rows are kept, as one batch after the other is looked at."""

    def __init__(
        self, rows: Rows, data: DataConfig, num_needed: int, *, exclude: int, heldout: Collection[int]
    ) -> None:
        self.num_kept = 0  # those that are excluded as well
        self.shapes: dict[str, None] = {}
        self.too_long: Counter[int] = Counter()  # rows by their tokens
        self._rows = rows
        self._data = data
        self._exclude = exclude
        self._num_wanted = exclude + num_needed
        self._heldout = heldout

    def room(self) -> int:
        """Return how many more rows can be kept."""
        return self._num_wanted - self.num_kept

    def look_at(self, indices: Sequence[int], tokenized: TokenizedRows) -> NDArray[np.bool_]:
        """Count the rows at `indices`; return which are examples, [N]. Raises DataError for a broken one."""
        examples, keys = tokenized.examples, tokenized.keys.tolist()
        num_tokens, num_prompt = examples.num_tokens.tolist(), examples.num_prompt.tolist()
        kept = np.zeros(len(indices), dtype=np.bool_)
        for position, index in enumerate(indices):
            fault = tokenized.faults.get(position)
            is_excluded = self.num_kept < self._exclude
            if (fault is None or fault.has_key) and not is_excluded and keys[position] in self._heldout:
                words = "it is also a held-out row, which is not trained on"
                fault = Fault(reason=Reason.HELD_OUT, words=words)
            elif fault is None and (words := _too_long(num_prompt[position], num_tokens[position], self._data)):
                fault = Fault(reason=Reason.TOO_LONG, words=words)
                self.too_long[num_tokens[position]] += 1
            if fault is not None:
                self._rows.blame(index, fault)
                continue
            kept[position] = not is_excluded
            self.num_kept += 1
            self.shapes[tokenized.shapes[position]] = None
        return kept


def _too_long(num_prompt: int, num_tokens: int, data: DataConfig) -> str:
    """Say in what an example does not fit; "" where it does."""
    if num_prompt > data.max_length - data.min_room:
        return (
            f"the prompt has {num_prompt:,} tokens, which leaves less than data.min_room={data.min_room} of "
            f"data.max_length={data.max_length}"
        )
    if num_tokens > data.max_length:
        return (
            f"prompt and completion have {num_prompt:,} and {num_tokens - num_prompt:,} tokens, more than "
            f"data.max_length={data.max_length}"
        )
    return ""


def _explain_nothing_kept(rows: Rows, data: DataConfig, num_kept: int, too_long: Counter[int], exclude: int) -> str:
    if not len(rows):
        return f"{rows.name} has no rows: give other data"
    fate = (
        f"of its {len(rows)} rows {rows.num_left_out(Reason.BROKEN)} are broken, {too_long.total()} do not fit "
        f"data.max_length={data.max_length} with data.min_room={data.min_room}"
    )
    if num_filtered := rows.num_left_out(Reason.FILTERED):
        fate = f"{fate}, {num_filtered} are left out by data.filter"
    if num_untrained := rows.num_left_out(Reason.UNTRAINED):
        fate = f"{fate}, {num_untrained} have answers of weight 0 alone"
    if num_heldout := rows.num_left_out(Reason.HELD_OUT):
        fate = f"{fate}, {num_heldout} are also held out"
    if too_long:
        fate = f"{fate} ({describe_lengths(too_long.elements())})"
    if exclude:
        return (
            f"{rows.name} leaves nothing to train on: {fate}, and the {num_kept} others are held out "
            f"(eval.num_rows={exclude}); lower eval.num_rows, name an eval.source, or give more data"
        )
    first = next((f" (first: {part.first[0]})" for part in rows.left_out if part.reason is Reason.BROKEN), "")
    way_out = "raise data.max_length or give other data" if too_long else "give other data"
    way_out = "give data that eval.source does not hold" if num_heldout else way_out
    return f"{rows.name} leaves no examples: {fate}{first}; {way_out}"
