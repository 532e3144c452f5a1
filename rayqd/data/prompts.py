"""The prompts of a data set, for a model to complete: in the order in which a run looks at its rows, as it reads them.

A prompt is kept if it leaves room for a completion. The data's own completion does not matter, and may be missing.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayqd.config import Config
from rayqd.data.chat_settings import chat_settings
from rayqd.data.conversation import Message, row_parser
from rayqd.data.examples import check_max_length
from rayqd.data.left_out import Reason
from rayqd.data.select import row_order
from rayqd.data.sources import read_rows
from rayqd.data.template import tokenize_prompt
from rayqd.errors import DataError
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that waits for its completion."""

    row: int  # position in its source
    messages: list[Message]
    token_ids: IntArray  # [P] ends with the generation prompt of the chat template


class Prompts:
    """Read and tokenized as they are asked for: a data set on the hub may be long."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config, context_length: int) -> None:
        """Open the source. Raises DataError where it cannot be read, ConfigError if `data.max_length` does not fit."""
        data = config.data
        check_max_length(data, context_length)
        self._tokenizer = tokenizer
        self._chat = chat_settings(data)
        self._longest = data.max_length - data.min_room
        self._rows = read_rows(data, parse=row_parser(data, prompt_only=True))
        self._order = row_order(len(self._rows), config.seed)

    def __len__(self) -> int:
        """Rows of the source, whether their prompts are kept or not."""
        return len(self._rows)

    @property
    def source(self) -> str:
        """Path, or id and split."""
        return self._rows.name

    @property
    def num_too_long(self) -> int:
        """Prompts met so far that leave no room."""
        return self._rows.num_left_out(Reason.TOO_LONG)

    @property
    def num_skipped(self) -> int:
        """Broken rows met so far."""
        return self._rows.num_left_out(Reason.BROKEN)

    @property
    def num_filtered(self) -> int:
        """Rows met so far that `data.filter` leaves out."""
        return self._rows.num_left_out(Reason.FILTERED)

    @property
    def order(self) -> NDArray[np.int64]:
        """Rows of the source in the order in which they come."""
        return self._order

    def messages(self, row: int) -> list[Message] | None:
        """Return what row `row` asks; None where there is no such row, or it is broken and broken rows are skipped."""
        return self._rows.row(row) if 0 <= row < len(self._rows) else None

    def remaining(self, done: Container[int], limit: int | None) -> Iterator[Prompt]:
        """Yield, of the first `limit` prompts that are kept, those whose rows are not `done`."""
        num_kept = 0
        for row in map(int, self._order):
            if num_kept == limit:
                return
            if row in done:
                num_kept += 1
            elif (prompt := self._prompt(row)) is not None:
                num_kept += 1
                yield prompt

    def _prompt(self, row: int) -> Prompt | None:
        messages = self._rows.row(row)
        if messages is None:
            return None
        try:
            token_ids = tokenize_prompt(self._tokenizer, messages, self._chat)
        except DataError as error:
            self._rows.reject(row, str(error))
            return None
        if len(token_ids) > self._longest:
            what = f"the prompt has {len(token_ids)} tokens, more than {self._longest}"
            self._rows.leave_out(row, Reason.TOO_LONG, what)
            return None
        return Prompt(row=row, messages=messages, token_ids=token_ids)
