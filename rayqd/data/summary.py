"""What a run reads, in numbers and examples: for the terminal, for the run's page, and for `rayqd data`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayqd.checksums import digest
from rayqd.config import Config
from rayqd.data.as_seen import decode, see_row
from rayqd.data.chat_settings import chat_settings
from rayqd.data.example_set import ExampleSet
from rayqd.data.mixture import by_weight
from rayqd.data.packed_examples import count_tokens, count_trained_tokens
from rayqd.data.plan import make_plan
from rayqd.data.routing import count_by_teacher, teachers_by_source
from rayqd.data.run_data import heldout_of_each, weights_of
from rayqd.data.stops import end_token_ids
from rayqd.errors import ModelError
from rayqd.runs.data_file import LeftOutRows, LengthBin, Lengths, RunData, SeenRow, SourceRows, TeacherRows
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
    sources, steps_per_epoch = _each_source(config, training, heldout)
    return RunData(
        training=_source_rows(training),
        heldout=_source_rows(heldout),
        lengths=measure_lengths(*(part.examples for part in training.parts)),
        steps_per_epoch=steps_per_epoch,
        first=tuple(
            _first_rows(tokenizer, config, training, ends, num_first)
            if trains
            else _first_of_data(tokenizer, config, training, ends, num_first)
        ),
        ends=tuple(decode(tokenizer, np.asarray([index], dtype=np.int32)) for index in ends),
        use="trained on" if trains else "the answer",
        sources=tuple(sources) if len(sources) > 1 else (),
        teachers=tuple(_count_by_teacher(config, training, heldout)),
        rows=_digest_rows(training, heldout),
    )


def _count_by_teacher(config: Config, training: ExampleSet, heldout: ExampleSet) -> Iterator[TeacherRows]:
    """Yield what each of several teachers reads."""
    if not config.teacher.route:
        return
    counts = [count_by_teacher(rows, len(config.teachers)) for rows in (training, heldout)]
    for number, teacher in enumerate(config.teachers):
        yield TeacherRows(
            name=teacher.name,
            values=tuple(value for value, name in config.teacher.route.items() if name == teacher.name),
            num_training=counts[0][number],
            num_heldout=counts[1][number],
        )


def _digest_rows(*each: ExampleSet) -> str:
    """Return the digest of all rows in their order, as far as `row_key` tells them apart, and of who teaches them."""
    parts = [part.tobytes() for rows in each for part in (rows.keys.astype("<u8"), *teachers_by_source(rows))]
    return digest(b"".join(len(part).to_bytes(8, "little") + part for part in parts))


def _find_ends(tokenizer: PreTrainedTokenizerBase, directory: Path, config: Config) -> tuple[int, ...]:
    """Return the tokens that end a text; none of a tokenizer without any, which takes plain text alone."""
    try:
        return end_token_ids(tokenizer, directory, chat_settings(config.data))
    except ModelError:
        return ()


def _each_source(config: Config, training: ExampleSet, heldout: ExampleSet) -> tuple[list[SourceRows], float]:
    """Return what became of the rows of each source and how often they come; and the steps until each has come."""
    held_out = heldout_of_each(config)
    if config.eval.source is None and not training.joined:
        held_out = [len(heldout.examples)]  # fewer, where it has no more
    drawn = make_plan(config, training.sizes).num_drawn(config.learner.steps)
    sources: list[SourceRows] = []
    steps: list[float] = []
    for i, (source, part) in enumerate(zip(config.data.each_source, training.parts, strict=True)):
        share = source.weight / sum(weights_of(config))
        steps.append(_estimate_epoch(part, held_out[i], source.limit) / (share * config.learner.batch_size))
        sources.append(
            replace(
                _source_rows(part),
                label=config.data.source_names[i],
                share=share,
                num_drawn=drawn[i],
                num_epochs=config.learner.steps / steps[i],
            )
        )
    return sources, max(steps)


def _estimate_epoch(training: ExampleSet, num_held_out: int, limit: int | None) -> float:
    """Return how many rows of the source could be trained on, if those not looked at are like those that were."""
    num_good = len(training.examples) + num_held_out
    num_bad = sum(each.num_rows for each in training.left_out)
    estimate = training.num_rows * num_good / (num_good + num_bad) - num_held_out
    return min(estimate, limit or estimate)


def measure_lengths(*parts: Sequence[Example]) -> Lengths:
    """Return the distribution of the tokens of the examples of all `parts`, at least one."""
    sizes = np.concatenate([count_tokens(examples) for examples in parts])
    width = _bin_width(int(sizes.max()))
    counts = np.bincount((sizes - 1) // width)
    bins = [LengthBin(first=i * width + 1, last=(i + 1) * width, num_rows=int(count)) for i, count in enumerate(counts)]
    return Lengths(
        bins=tuple(bins[next(i for i, each in enumerate(bins) if each.num_rows) :]),
        mean=float(sizes.mean()),
        median=float(np.median(sizes)),
        high=int(np.percentile(sizes, 95, method="inverted_cdf")),
        longest=int(sizes.max()),
        trained_share=sum(map(count_trained_tokens, parts)) / int(sizes.sum()),
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
    training: ExampleSet,
    ends: Sequence[int],
    num_first: int,
) -> list[SeenRow]:
    """Return different rows, in the order in which the run first trains on them."""
    plan, examples, names = make_plan(config, training.sizes), training.examples, _names(training, config)
    rows: dict[int, SeenRow] = {}
    for step in range(config.learner.steps):
        for sequence in plan.step(step):
            if len(rows) >= min(num_first, len(examples)):
                return list(rows.values())
            writer = "the student" if sequence.on_policy else "the teacher" if config.distill.seq_kd else ""
            example = examples[sequence.example]
            row = see_row(tokenizer, example, ends, writer=writer, source=names[sequence.source])
            rows.setdefault(sequence.example, row)
    return list(rows.values())


def _first_of_data(
    tokenizer: PreTrainedTokenizerBase, config: Config, training: ExampleSet, ends: Sequence[int], num_first: int
) -> list[SeenRow]:
    """Return the first rows of the data, those of several sources by their weights."""
    names = _names(training, config)
    first = islice(by_weight(training, weights_of(config)), num_first)
    return [see_row(tokenizer, example, ends, source=names[source]) for source, example in first]


def _names(training: ExampleSet, config: Config) -> Sequence[str]:
    """Return the sources' names; nothing where there is but one."""
    return config.data.source_names if len(training.parts) > 1 else ("",)
