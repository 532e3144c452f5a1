"""The examples of a source: its rows in an order, tokenized until enough of them are kept.

A row is kept if every message has text, its prompt leaves room for a completion, prompt and completion fit, and it is
not held out. `run_data.py` says what of a run's sources is held out, and what is trained on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from rayqd.config.sections import DataConfig
from rayqd.data.conversation import row_parser
from rayqd.data.example_set import ExampleSet
from rayqd.data.routing import Route
from rayqd.data.select import OnTokenized, row_order, select_examples
from rayqd.data.sources import read_rows
from rayqd.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    route: Route | None = None,
) -> ExampleSet:
    """Read up to `num_needed` examples of the shuffled source, after the first `exclude` ones kept, which are held out.

    After those no row is taken whose key (`row_key`) is in `heldout`. Rows may be prompts alone unless `needs_answer`.
    `route` says who teaches each.

    Raises DataError if no example is left, or one has no teacher, ConfigError if `data.max_length` is above
    `context_length`.
    """
    check_max_length(data, context_length)
    rows = read_rows(data, parse=row_parser(data, needs_answer=needs_answer))
    order = row_order(len(rows), seed)
    found = select_examples(
        tokenizer, rows, order, data, num_needed, exclude=exclude, heldout=heldout, on_tokenized=on_tokenized
    )
    return route.apply(found, rows) if route else found


def load_in_order(
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    num_needed: int,
    context_length: int,
    route: Route | None = None,
) -> ExampleSet:
    """Read the first `num_needed` examples of the source as it stands; rows may be prompts alone.

    Raises as `load_examples` does.
    """
    check_max_length(data, context_length)
    rows = read_rows(data, parse=row_parser(data, needs_answer=False))
    found = select_examples(tokenizer, rows, np.arange(len(rows)), data, num_needed)
    return route.apply(found, rows) if route else found


def check_max_length(data: DataConfig, context_length: int) -> None:
    """Raise ConfigError if the model cannot take `data.max_length` tokens."""
    if data.max_length > context_length:
        raise ConfigError(
            f"data.max_length={data.max_length} is above the {context_length} tokens that the model takes; "
            f"set data.max_length to {context_length} or less"
        )
