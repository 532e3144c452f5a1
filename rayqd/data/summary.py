"""What a run reads, in numbers and examples: for the terminal, for the run's page, and for `rayqd data`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayqd.config import Config
from rayqd.data.as_seen import decode, see_row
from rayqd.data.chat_settings import chat_settings
from rayqd.data.example_set import ExampleSet
from rayqd.data.packed_examples import count_tokens, count_trained_tokens
from rayqd.data.plan import make_plan
from rayqd.data.stops import end_token_ids
from rayqd.errors import ModelError
from rayqd.runs.data_file import LeftOutRows, LengthBin, Lengths, RunData, SeenRow, SourceRows
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_FIRST = 3  # rows that a run shows
_MOST_BINS = 12


def summarize_data(
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    config: Config,
    training: ExampleSet,
    heldout: ExampleSet,
    *,
    num_first: int = NUM_FIRST,
    trains: bool = True,
) -> RunData:
    """Count, measure and decode what a run of `config` reads; `directory` is the model's, which says what ends a text.

    The first `num_first` rows are those that the first steps train on, or where nothing `trains` those of the data.
    """
    ends = _find_ends(tokenizer, directory, config)
    num_held_out = 0 if config.eval.source else len(heldout.examples)
    return RunData(
        training=_source_rows(training),
        heldout=_source_rows(heldout),
        lengths=measure_lengths(training.examples),
        steps_per_epoch=_estimate_epoch(training, num_held_out) / config.learner.batch_size,
        first=tuple(
            _first_rows(tokenizer, config, training.examples, training.sizes, ends, num_first)
            if trains
            else (see_row(tokenizer, example, ends) for example in training.examples[:num_first])
        ),
        ends=tuple(decode(tokenizer, np.asarray([index], dtype=np.int32)) for index in ends),
        use="trained on" if trains else "the answer",
    )


def _find_ends(tokenizer: PreTrainedTokenizerBase, directory: Path, config: Config) -> tuple[int, ...]:
    """Return the tokens that end a text; none of a tokenizer without any, which takes plain text alone."""
    try:
        return end_token_ids(tokenizer, directory, chat_settings(config.data))
    except ModelError:
        return ()


def _estimate_epoch(training: ExampleSet, num_held_out: int) -> float:
    """Return how many rows of the source could be trained on, if those not looked at are like those that were."""
    num_good = len(training.examples) + num_held_out
    num_bad = sum(each.num_rows for each in training.left_out)
    return training.num_rows * num_good / (num_good + num_bad) - num_held_out


def measure_lengths(examples: Sequence[Example]) -> Lengths:
    """Return the distribution of the tokens of `examples`, at least one."""
    sizes = count_tokens(examples)
    width = _bin_width(int(sizes.max()))
    counts = np.bincount((sizes - 1) // width)
    bins = [LengthBin(first=i * width + 1, last=(i + 1) * width, num_rows=int(count)) for i, count in enumerate(counts)]
    return Lengths(
        bins=tuple(bins[next(i for i, each in enumerate(bins) if each.num_rows) :]),
        mean=float(sizes.mean()),
        median=float(np.median(sizes)),
        high=int(np.percentile(sizes, 95, method="inverted_cdf")),
        longest=int(sizes.max()),
        trained_share=count_trained_tokens(examples) / int(sizes.sum()),
    )


def _bin_width(longest: int) -> int:
    """Return the least power of two with which at most `_MOST_BINS` bins are enough."""
    width = 1
    while -(-longest // width) > _MOST_BINS:
        width = width * 2
    return width


def _source_rows(rows: ExampleSet) -> SourceRows:
    left_out = (
        LeftOutRows(reason=str(each.reason), num_rows=each.num_rows, first=tuple(map(str, each.first)))
        for each in rows.left_out
    )
    return SourceRows(
        name=rows.source,
        num_rows=rows.num_rows,
        num_used=len(rows.examples),
        num_not_needed=rows.num_rows - len(rows.examples) - sum(each.num_rows for each in rows.left_out),
        num_duplicates=rows.num_duplicates,
        left_out=tuple(left_out),
    )


def _first_rows(
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
    examples: Sequence[Example],
    sizes: Sequence[int],
    ends: Sequence[int],
    num_first: int,
) -> list[SeenRow]:
    """Return different rows, in the order in which the run first trains on them."""
    plan = make_plan(config, sizes)
    rows: dict[int, SeenRow] = {}
    for step in range(config.learner.steps):
        for sequence in plan.step(step):
            if len(rows) >= min(num_first, len(examples)):
                return list(rows.values())
            writer = "the student" if sequence.on_policy else "the teacher" if config.distill.seq_kd else ""
            example = examples[sequence.example]
            rows.setdefault(sequence.example, see_row(tokenizer, example, ends, writer=writer))
    return list(rows.values())
