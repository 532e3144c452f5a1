"""The examples of a run: rows in a seeded order, tokenized until enough of them are kept.

A row is kept if every message has text, its prompt leaves room for a completion, prompt and completion fit, and it is
not held out. With no `eval.source`, the first rows kept are held out and training takes those after them.
"""

from __future__ import annotations

import filecmp
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rayqd.config import Config
from rayqd.config.data_source import existing_file_of_source
from rayqd.config.sections import DataConfig
from rayqd.data.conversation import row_parser
from rayqd.data.example_set import ExampleSet
from rayqd.data.select import OnTokenized, row_order, select_examples
from rayqd.data.sources import read_rows
from rayqd.errors import ConfigError
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        heldout=frozenset(heldout.keys.tolist()),
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
    return select_examples(tokenizer, rows, np.arange(len(rows)), data, num_rows)


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
    order = row_order(len(rows), seed)
    return select_examples(
        tokenizer, rows, order, data, num_needed, exclude=exclude, heldout=heldout, on_tokenized=on_tokenized
    )


def check_max_length(data: DataConfig, context_length: int) -> None:
    """Raise ConfigError if the model cannot take `data.max_length` tokens."""
    if data.max_length > context_length:
        raise ConfigError(
            f"data.max_length={data.max_length} is above the {context_length} tokens that the model takes; "
            f"set data.max_length to {context_length} or less"
        )


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
