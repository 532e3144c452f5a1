"""The examples of a run: rows in a seeded order, tokenized until enough of them are kept.

A row is kept if every message has text, its prompt leaves room for a completion, and prompt and completion fit. With no
`eval.source`, the first rows kept are held out and training takes those after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rayqd.config import Config
from rayqd.config.data_source import existing_file_of_source
from rayqd.config.sections import DataConfig
from rayqd.data.conversation import Message
from rayqd.data.sources import Rows, read_rows
from rayqd.data.template import tokenize_example
from rayqd.errors import ConfigError, DataError
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """What was kept of a source, in the order in which it was looked at, and what was left out on the way."""

    examples: list[Example]
    num_skipped: int  # broken rows
    num_too_long: int  # rows left out by data.max_length and data.min_room
    num_filtered: int = 0  # rows left out by data.filter
    source: str  # path, or id and split
    reasons: tuple[str, ...]  # location and fault of the first few broken rows


def load_run_data(
    tokenizer: PreTrainedTokenizerBase, config: Config, context_length: int
) -> tuple[ExampleSet, ExampleSet]:
    """Read training and held-out examples; no row is in both. `context_length`: tokens the model takes.

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
    )
    return training, heldout


def load_heldout(tokenizer: PreTrainedTokenizerBase, config: Config, context_length: int) -> ExampleSet:
    """Read the first `eval.num_rows` rows kept of `eval.source` as it stands, or else of the shuffled data."""
    data, num_rows = config.data, config.eval.num_rows
    if config.eval.source is None:
        return load_examples(tokenizer, data, seed=config.seed, num_needed=num_rows, context_length=context_length)
    if _location(config.eval.source, config.eval.split) == _location(data.source, data.split):
        raise ConfigError(
            f'eval.source="{config.eval.source}" is what data.source trains on; name another source or split, '
            "or leave eval.source out to hold out the first eval.num_rows rows"
        )
    data = data.model_copy(update={"source": config.eval.source, "split": config.eval.split})
    check_max_length(data, context_length)
    rows = read_rows(data)
    return _select(tokenizer, rows, range(len(rows)), data, num_rows, context_length, exclude=0)


def load_examples(
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    *,
    seed: int,
    num_needed: int,
    context_length: int,
    exclude: int = 0,
) -> ExampleSet:
    """Read up to `num_needed` examples of the shuffled source, after the first `exclude` ones kept, which are held out.

    Raises DataError if no example is left, ConfigError if `data.max_length` is above `context_length`.
    """
    check_max_length(data, context_length)
    rows = read_rows(data)
    return _select(tokenizer, rows, row_order(len(rows), seed), data, num_needed, context_length, exclude)


def row_order(num_rows: int, seed: int) -> list[int]:
    """Return the seeded permutation of a source's rows in which a run looks at them."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(num_rows).tolist()


def _select(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    order: Iterable[int],
    data: DataConfig,
    num_needed: int,
    context_length: int,
    exclude: int,
) -> ExampleSet:
    kept: list[Example] = []
    num_too_long = 0
    for index in order:
        if len(kept) == exclude + num_needed:
            break
        messages = rows.row(index)
        if messages is None:
            continue
        example = _tokenize(tokenizer, rows, index, messages, context_length)
        if example is None:
            continue
        if _fits(example, data):
            kept.append(example)
        else:
            num_too_long += 1
    if len(kept) <= exclude:
        raise DataError(_explain_nothing_kept(rows, data, len(kept), num_too_long, exclude))
    return ExampleSet(
        examples=kept[exclude:],
        num_skipped=rows.num_skipped,
        num_too_long=num_too_long,
        num_filtered=rows.num_filtered,
        source=rows.name,
        reasons=tuple(rows.reasons),
    )


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, index: int, messages: list[Message], context_length: int
) -> Example | None:
    """Return None if the template refuses the row or the model cannot take its prompt, and broken rows are skipped."""
    try:
        example = tokenize_example(tokenizer, messages, index)
    except DataError as error:
        rows.reject(index, str(error))
        return None
    num_prompt_tokens = len(example.prompt_ids)
    if num_prompt_tokens > context_length:
        rows.reject(index, f"the prompt has {num_prompt_tokens} tokens, the model takes {context_length}")
        return None
    return example


def _fits(example: Example, data: DataConfig) -> bool:
    num_prompt_tokens = len(example.prompt_ids)
    has_room = num_prompt_tokens <= data.max_length - data.min_room
    return has_room and num_prompt_tokens + len(example.completion_ids) <= data.max_length


def check_max_length(data: DataConfig, context_length: int) -> None:
    """Raise ConfigError if the model cannot take `data.max_length` tokens."""
    if data.max_length > context_length:
        raise ConfigError(
            f"data.max_length={data.max_length} is above the {context_length} tokens that the model takes; "
            f"set data.max_length to {context_length} or less"
        )


def _explain_nothing_kept(rows: Rows, data: DataConfig, num_kept: int, num_too_long: int, exclude: int) -> str:
    fate = (
        f"of its {len(rows)} rows {rows.num_skipped} are broken, {num_too_long} do not fit "
        f"data.max_length={data.max_length} with data.min_room={data.min_room}"
    )
    if rows.num_filtered:
        fate = f"{fate}, {rows.num_filtered} are left out by data.filter"
    if exclude:
        return (
            f"{rows.name} leaves nothing to train on: {fate}, and the {num_kept} others are held out "
            f"(eval.num_rows={exclude}); lower eval.num_rows, name an eval.source, or give more data"
        )
    first = f" (first: {rows.reasons[0]})" if rows.reasons else ""
    return f"{rows.name} leaves no examples: {fate}{first}; raise data.max_length or give other data"


def _location(source: str, split: str) -> tuple[str, str]:
    """Return what `source` and `split` name; a file is the same under every split and every spelling of its path."""
    file = existing_file_of_source(source)
    return (str(file.resolve()), "") if file else (source, split)
