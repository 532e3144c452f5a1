"""Raw rows to tokens, many at a time, with no word to anybody: the part of reading data that can go on elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.conversation import Parse, UntrainedError
from rayqd.data.encode import Encoder
from rayqd.data.example_set import Keys
from rayqd.data.left_out import Fault, Reason
from rayqd.data.messages import Conversation
from rayqd.data.packed_examples import PackedExamples
from rayqd.data.row_key import row_key
from rayqd.data.template import tokenize_examples
from rayqd.errors import DataError
from rayqd.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_IDS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedRows:
    """What rows came to, in the order in which they were given."""

    examples: PackedExamples  # of a row with a fault without tokens
    keys: Keys  # [N]
    shapes: Sequence[str]  # as what each was read
    faults: dict[int, Fault]  # by position


@dataclass(slots=True)
class RowTokenizer:
    """Parses rows and makes tokens of them; can be pickled."""

    tokenizer: PreTrainedTokenizerBase
    parse: Parse
    chat: ChatSettings
    _encoder: Encoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.tokenizer)

    def __call__(self, rows: Sequence[tuple[int, object]]) -> TokenizedRows:
        """Return the examples of rows, each given with its position in the source, or with the fault it was read with.

        Raises ModelError where the tokenizer or its template can be used for none.
        """
        conversations: dict[int, Conversation] = {}
        faults: dict[int, Fault] = {}
        for position, (_, row) in enumerate(rows):
            if isinstance(row, Fault):
                faults[position] = row
                continue
            try:
                conversations[position] = Conversation.of(self.parse(row))
            except UntrainedError as error:
                faults[position] = Fault(reason=Reason.UNTRAINED, words=str(error))
            except DataError as error:
                faults[position] = Fault(reason=Reason.BROKEN, words=str(error))
        keys = np.zeros(len(rows), dtype=np.uint64)
        shapes = [""] * len(rows)
        examples = [Example(row=row, prompt_ids=NO_IDS, completion_ids=NO_IDS) for row, _ in rows]
        numbers = [rows[position][0] for position in conversations]
        made = tokenize_examples(self._encoder, list(conversations.values()), numbers, self.chat)
        for (position, conversation), example in zip(conversations.items(), made, strict=True):
            keys[position] = row_key([*conversation, *(conversation.tools or ())])
            shapes[position] = conversation.shape
            if isinstance(example, DataError):
                faults[position] = Fault(reason=Reason.BROKEN, words=str(example), has_key=True)
            else:
                examples[position] = example
        return TokenizedRows(examples=PackedExamples.of(examples), keys=keys, shapes=shapes, faults=faults)
