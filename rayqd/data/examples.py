"""The examples of a run: rows in a seeded order, tokenized until enough of them are kept.

A row is kept if every message has text, its prompt leaves room for a completion, prompt and completion fit, and it is
not held out. With no `eval.source`, the first rows kept are held out and training takes those after them.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from rayqd.config import Config
from rayqd.config.data_source import existing_file_of_source
from rayqd.config.sections import DataConfig
from rayqd.data.chat_settings import ChatSettings, chat_settings
from rayqd.data.conversation import row_parser
from rayqd.data.left_out import LeftOut, Reason
from rayqd.data.lengths import describe_lengths
from rayqd.data.messages import Conversation
from rayqd.data.row_key import row_key
from rayqd.data.sources import Rows, read_rows
from rayqd.data.template import tokenize_example
from rayqd.errors import ConfigError, DataError
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnTokenized = Callable[[int, int], None]  # rows kept so far, and how many at most
_REPORT_EVERY = 64  # rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """What was kept of a source, in the order in which it was looked at, and what was left out on the way."""

    examples: list[Example]
    keys: list[int] = field(repr=False)  # of the examples' rows, by `row_key`
    source: str  # path, or id and split
    num_rows: int  # of the source, looked at or not
    left_out: tuple[LeftOut, ...]  # of the rows looked at
    remarks: tuple[str, ...] = ()  # what the user should know of it besides, a line each
    shapes: tuple[str, ...] = ()  # as what the rows were read

    @property
    def num_duplicates(self) -> int:
        """Examples whose row is that of an earlier one, but for white space and case."""
        return len(self.keys) - len(set(self.keys))

    def num_left_out(self, reason: Reason) -> int:
        """Count the rows looked at that are not used for `reason`."""
        return sum(left_out.num_rows for left_out in self.left_out if left_out.reason is reason)


def load_run_data(
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    context_length: int,
    on_tokenized: OnTokenized | None = None,
) -> tuple[ExampleSet, ExampleSet]:
    """Read training and held-out examples; no row is in both. `context_length`: tokens the model takes.

    `on_tokenized` is called now and then while training rows are tokenized, which may take minutes.

    Raises DataError for a source that cannot be read or of which nothing is kept, ConfigError for lengths or sources
    that cannot go together.
    """
    heldout = load_heldout(tokenizer, config, context_length)
    training = load_examples(
        tokenizer,
        config.data,
        seed=config.seed,
        num_needed=config.learner.steps * config.learner.batch_size,
        context_length=context_length,
        exclude=config.eval.num_rows if config.eval.source is None else 0,
        heldout=frozenset(heldout.keys),
        needs_answer=config.trains_on_answers,
        on_tokenized=on_tokenized,
    )
    remarks = (*training.remarks, *_remarks(config, len(training.examples)))
    heldout = replace(heldout, remarks=(*heldout.remarks, *_heldout_remarks(heldout.examples)))
    return replace(training, remarks=remarks), heldout


def load_heldout(tokenizer: PreTrainedTokenizerBase, config: Config, context_length: int) -> ExampleSet:
    """Read the first `eval.num_rows` rows kept of `eval.source` as it stands, or else of the shuffled data."""
    data, num_rows = config.data, config.eval.num_rows
    if config.eval.source is None:
        return load_examples(
            tokenizer,
            data,
            seed=config.seed,
            num_needed=num_rows,
            context_length=context_length,
            needs_answer=config.trains_on_answers,
        )
    subset = data.subset if config.eval.subset is None and config.eval.source == data.source else config.eval.subset
    if _location(config.eval.source, config.eval.split, subset) == _location(data.source, data.split, data.subset):
        raise ConfigError(
            f'eval.source="{config.eval.source}" is what data.source trains on; name another source or split, '
            "or leave eval.source out to hold out the first eval.num_rows rows"
        )
    data = data.model_copy(update={"source": config.eval.source, "split": config.eval.split, "subset": subset})
    check_max_length(data, context_length)
    rows = read_rows(data, parse=row_parser(data, needs_answer=False))
    return _select(tokenizer, rows, range(len(rows)), data, num_rows, exclude=0)


def load_examples(
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    *,
    seed: int,
    num_needed: int,
    context_length: int,
    exclude: int = 0,
    heldout: Collection[int] = frozenset(),
    needs_answer: bool = True,
    on_tokenized: OnTokenized | None = None,
) -> ExampleSet:
    """Read up to `num_needed` examples of the shuffled source, after the first `exclude` ones kept, which are held out.

    After those no row is taken whose key (`row_key`) is in `heldout`. Rows may be prompts alone unless `needs_answer`.

    Raises DataError if no example is left, ConfigError if `data.max_length` is above `context_length`.
    """
    check_max_length(data, context_length)
    rows = read_rows(data, parse=row_parser(data, needs_answer=needs_answer))
    return _select(tokenizer, rows, row_order(len(rows), seed), data, num_needed, exclude, heldout, on_tokenized)


def row_order(num_rows: int, seed: int) -> list[int]:
    """Return the seeded permutation of a source's rows in which a run looks at them."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(num_rows).tolist()


def _select(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    order: Iterable[int],
    data: DataConfig,
    num_needed: int,
    exclude: int,
    heldout: Collection[int] = frozenset(),
    on_tokenized: OnTokenized | None = None,
) -> ExampleSet:
    kept: list[Example] = []
    keys: list[int] = []
    shapes: dict[str, None] = {}
    chat = chat_settings(data)
    too_long: list[int] = []  # tokens
    for index in order:
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
        keys=keys[exclude:],
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


def check_max_length(data: DataConfig, context_length: int) -> None:
    """Raise ConfigError if the model cannot take `data.max_length` tokens."""
    if data.max_length > context_length:
        raise ConfigError(
            f"data.max_length={data.max_length} is above the {context_length} tokens that the model takes; "
            f"set data.max_length to {context_length} or less"
        )


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


def _remarks(config: Config, num_examples: int) -> tuple[str, ...]:
    """Say what is strange about training and held-out data, though the run can go on with it."""
    remarks: list[str] = []
    if config.eval.source and _is_copy(config.eval.source, config.data.source):
        remarks.append(
            f"eval.source={config.eval.source} is a byte copy of data.source={config.data.source}: "
            "the rows that it holds out are left out of training"
        )
    if num_examples < config.learner.batch_size:
        rows = "a single row" if num_examples == 1 else f"{num_examples} rows"
        remarks.append(
            f"there {'is' if num_examples == 1 else 'are'} {rows} to train on, less than one step takes "
            f"(learner.batch_size={config.learner.batch_size}): a step has the same row several times"
        )
    return tuple(remarks)


def _heldout_remarks(examples: Sequence[Example]) -> tuple[str, ...]:
    num_prompts = sum(not example.has_answer for example in examples)
    if not num_prompts:
        return ()
    return (
        f"{num_prompts} of {len(examples)} held-out rows have no answer: the divergence is measured on their prompts; "
        "eval.source names rows that have",
    )


def _is_copy(source: str, other: str) -> bool:
    file, other_file = existing_file_of_source(source), existing_file_of_source(other)
    return file is not None and other_file is not None and filecmp.cmp(file, other_file, shallow=False)


def _location(source: str, split: str, subset: str | None) -> tuple[str, str, str | None]:
    """Return what these name; a file is the same under every name of a split and every spelling of its path."""
    file = existing_file_of_source(source)
    return (str(file.resolve()), "".join(split.partition("[")[1:]), None) if file else (source, split, subset)
