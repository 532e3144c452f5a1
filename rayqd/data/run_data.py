"""What a run trains on and what it holds out, of one source or of several.

Each of several sources gives its share of the sequences, so a run reads as many rows of it as that takes. With no
`eval.source` the first rows kept are held out, of each source its share, and training takes those after them.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from rayqd.config import Config
from rayqd.config.data_source import existing_file_of_source
from rayqd.config.sections import DataConfig
from rayqd.config.sections.sources import SourceConfig
from rayqd.data.chat_settings import chat_settings
from rayqd.data.example_set import ExampleSet
from rayqd.data.examples import load_examples, load_in_order
from rayqd.data.mixture import by_weight, join
from rayqd.data.render import check_variables
from rayqd.data.routing import Route
from rayqd.data.running_text import with_text
from rayqd.data.select import OnTokenized
from rayqd.data.shares import count_drawn
from rayqd.errors import ConfigError, DataError
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN_SETTINGS = re.compile(r"\bdata\.(split|subset|columns)\b")


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
    sources, weights = config.data.each_source, weights_of(config)
    drawn = count_drawn(weights, config.learner.steps * config.learner.batch_size)
    needed = [min(max(1, num), each.limit or num or 1) for each, num in zip(sources, drawn, strict=True)]
    excluded = heldout_of_each(config)
    keys = frozenset(heldout.keys.tolist())
    route = Route.of(config)
    parts: list[ExampleSet] = []
    for i, source in enumerate(sources):
        so_far, later = sum(len(part.examples) for part in parts), sum(needed[i + 1 :])
        part = load_examples(
            tokenizer,
            config.data.of_source(source),
            seed=config.seed,
            num_needed=needed[i],
            context_length=context_length,
            exclude=excluded[i],
            heldout=keys,
            needs_answer=config.trains_on_answers,
            on_tokenized=_among_others(on_tokenized, so_far, later),
            route=route,
        )
        parts.append(part)
    training = join(parts)
    remarks = (*training.remarks, *_remarks(config, training), *_remarks_of_mixture(config, training, drawn))
    remarks = (*remarks, *route.remarks()) if route else remarks
    heldout = replace(heldout, remarks=(*heldout.remarks, *_heldout_remarks(heldout.examples)))
    return replace(training, remarks=remarks), with_text(heldout, tokenizer, config.eval, context_length)


def load_heldout(tokenizer: PreTrainedTokenizerBase, config: Config, context_length: int) -> ExampleSet:
    """Read the first `eval.num_rows` rows kept of `eval.source` as it stands, or else of the shuffled data.

    Raises as `load_run_data` does, also for a variable that the chat template never reads.
    """
    data = config.data
    check_variables(tokenizer, chat_settings(data))
    _check_all_different(data.each_source)
    if config.eval.source is not None:
        try:
            of_eval = _data_of_eval_source(config)
            return load_in_order(tokenizer, of_eval, config.eval.num_rows, context_length, Route.of(config))
        except DataError as error:  # which speaks of data's settings, where eval has its own
            raise DataError(_OWN_SETTINGS.sub(r"eval.\1", str(error))) from error
    return join(
        [
            load_examples(
                tokenizer,
                data.of_source(source),
                seed=config.seed,
                num_needed=num_rows,
                context_length=context_length,
                needs_answer=config.trains_on_answers,
                route=Route.of(config),
            )
            for source, num_rows in zip(data.each_source, heldout_of_each(config), strict=True)
            if num_rows
        ]
    )


def weights_of(config: Config) -> tuple[float, ...]:
    """Return the weight of each source."""
    return tuple(source.weight for source in config.data.each_source)


def examples_by_weight(training: ExampleSet, config: Config) -> Iterator[Example]:
    """Yield each example once, those of several sources by their weights: what the data is like, from the first on."""
    return (example for _, example in by_weight(training, weights_of(config)))


def heldout_of_each(config: Config) -> list[int]:
    """Return how many rows of each source are held out: its share of `eval.num_rows`, none with an `eval.source`."""
    return count_drawn(weights_of(config), config.eval.num_rows if config.eval.source is None else 0)


def _data_of_eval_source(config: Config) -> DataConfig:
    """Return how the rows of `eval.source` are read. Raises ConfigError where it is what is trained on."""
    data, source = config.data, config.eval.source
    assert source is not None
    same = next((each for each in data.each_source if each.source == source), None)
    subset = same.subset if config.eval.subset is None and same else config.eval.subset
    columns = config.eval.columns or (same.columns if same else data.columns)
    heldout = SourceConfig.model_construct(source=source, split=config.eval.split, subset=subset, columns=columns)
    if any(_location(each) == _location(heldout) for each in data.each_source):
        raise ConfigError(
            f'eval.source="{source}" is what {_setting(config)} trains on; name another source or split, '
            "or leave eval.source out to hold out the first eval.num_rows rows"
        )
    return data.of_source(heldout)


def _check_all_different(sources: Sequence[SourceConfig]) -> None:
    for (i, one), (j, other) in combinations(enumerate(sources), 2):
        if _location(one) == _location(other) and one.columns == other.columns:
            raise ConfigError(
                f"data.sources[{j}] is data.sources[{i}] once more ({other.source}): name it once, with the sum of "
                f"the weights ({one.weight + other.weight:g})"
            )


def _among_others(on_tokenized: OnTokenized | None, num_before: int, num_after: int) -> OnTokenized | None:
    """Return what counts a source's rows beside those of the sources before and after it."""
    if on_tokenized is None:
        return None
    return lambda done, total: on_tokenized(num_before + done, num_before + total + num_after)


def _remarks(config: Config, training: ExampleSet) -> Iterator[str]:
    """Say what is strange about training and held-out data, though the run can go on with it."""
    for source in config.data.each_source:
        if config.eval.source and _is_copy(config.eval.source, source.source):
            yield (
                f"eval.source={config.eval.source} is a byte copy of {_setting(config)}={source.source}: "
                "the rows that it holds out are left out of training"
            )
    num_examples = len(training.examples)
    if num_examples < config.learner.batch_size:
        rows = "a single row" if num_examples == 1 else f"{num_examples} rows"
        yield (
            f"there {'is' if num_examples == 1 else 'are'} {rows} to train on, less than one step takes "
            f"(learner.batch_size={config.learner.batch_size}): a step has the same row several times"
        )


def _remarks_of_mixture(config: Config, training: ExampleSet, drawn: Sequence[int]) -> Iterator[str]:
    sources = config.data.each_source
    for source, num_drawn in zip(sources, drawn, strict=True):
        if not num_drawn:
            share = source.weight / sum(weights_of(config))
            yield (
                f"{source.source} gives none of the run's {sum(drawn):,} sequences: its share is {share:.2g} "
                f"(weight={source.weight:g})"
            )
    if across := training.num_duplicates - sum(part.num_duplicates for part in training.parts):
        yield f"{across:,} rows of one source also stand in another"


def _heldout_remarks(examples: Sequence[Example]) -> tuple[str, ...]:
    num_prompts = sum(not example.has_answer for example in examples)
    if not num_prompts:
        return ()
    return (
        f"{num_prompts} of {len(examples)} held-out rows have no answer: the divergence is measured on their prompts; "
        "eval.source names rows that have",
    )


def _setting(config: Config) -> str:
    return "data.sources" if config.data.sources else "data.source"


def _is_copy(source: str, other: str) -> bool:
    file, other_file = existing_file_of_source(source), existing_file_of_source(other)
    return file is not None and other_file is not None and filecmp.cmp(file, other_file, shallow=False)


def _location(source: SourceConfig) -> tuple[str, str, str | None]:
    """Return what it names; a file is the same under every name of a split and every spelling of its path."""
    file = existing_file_of_source(source.source)
    if file is None:
        return source.source, source.split, source.subset
    return str(file.resolve()), "".join(source.split.partition("[")[1:]), None
