"""What a row of a data set says: a conversation, recognized by its columns, or by those that `data.columns` names.

`shapes.py` lists what is recognized. "finish_reason": "length" beside it says that the answer was cut, and has no end;
other keys are ignored. Where nothing is trained on the data's own answers, they may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from rayqd.config.sections import DataConfig
from rayqd.data.messages import Conversation, Message, describe_type
from rayqd.data.shapes import parse_shape, rename_columns, suggest_column
from rayqd.errors import DataError

MEDIA = ("image", "images", "video", "videos", "audio", "audios", "pixel_values")
LABEL = "label"  # of a prompt and its answer: whether that is a good one
FINISH_REASON, CUT = "finish_reason", "length"  # as every serving API calls it


class UntrainedError(DataError):
    """A row whose answers all have weight 0: whole, and nothing to train on."""


Parse = Callable[[object], list[Message]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParser:
    """Makes a conversation of a row; can be pickled."""

    columns: tuple[tuple[str, str], ...] = ()  # of `data.columns`
    needs_answer: bool = True  # to train on
    prompt_only: bool = False  # leave the last answer out
    train_on: Literal["last", "all"] = "last"  # of the assistant's turns

    def __call__(self, row: object) -> Conversation:
        """Return the row's conversation, or one message of role TEXT.

        Raises DataError that says what is wrong with the row, without its location.
        """
        fields = _check_object(row)
        _check_no_media(fields)
        if self.columns:
            fields = rename_columns(fields, dict(self.columns))
        conversation = parse_shape(fields)
        if conversation is None or (conversation.is_text and self.prompt_only):
            raise DataError(self._explain_unknown(fields))
        if fields.get(FINISH_REASON) == CUT:
            conversation.is_cut = True
        return self._prompt_of(conversation) if self.prompt_only else self._check_answer(conversation, fields)

    def _check_answer(self, conversation: Conversation, fields: Mapping[str, object]) -> Conversation:
        if conversation.is_text:
            return conversation
        last = conversation[-1].get("role")
        if last != "assistant" and self.needs_answer:
            if conversation.shape.startswith("prompts"):
                raise DataError(
                    f"neither messages nor prompt with completion or response, nor text, got {_describe_keys(fields)}: "
                    f"{suggest_column(tuple(map(str, fields)))}prompts alone will do where the student writes every "
                    "answer (distill.lmbda = 1, distill.on_policy_after = 0)"
                )
            raise DataError(f"the last message must be the assistant's, got {last!r}")
        if last == "assistant" and len(conversation) == 1:
            raise DataError("there is an answer but nothing before it to answer")
        if self.needs_answer and fields.get(LABEL) is False and conversation.shape.startswith("prompt and answer"):
            raise UntrainedError(f"{LABEL} is false, which marks an answer that is not wanted, as in KTO's data")
        if self.needs_answer and not self._trains(conversation):
            raise UntrainedError(f"messages[{len(conversation) - 1}].weight is 0, so nothing of the row is trained on")
        return conversation

    def _trains(self, conversation: Conversation) -> bool:
        turns = [index for index, message in enumerate(conversation) if message.get("role") == "assistant"]
        return any(index not in conversation.untrained for index in (turns if self.train_on == "all" else turns[-1:]))

    def _prompt_of(self, conversation: Conversation) -> Conversation:
        if conversation[-1].get("role") != "assistant":
            return conversation
        if len(conversation) == 1:
            raise DataError("there is an answer but nothing before it to answer")
        return conversation.without_last()

    def _explain_unknown(self, fields: Mapping[str, object]) -> str:
        if self.prompt_only:
            return f"there is nothing to answer: neither messages nor prompt, got {_describe_keys(fields)}"
        return (
            f"neither messages nor prompt with completion or response, nor text, got {_describe_keys(fields)}: "
            f"{suggest_column(tuple(map(str, fields))) or _suggest_array(fields)}say in data.columns which of them are"
        )


def row_parser(data: DataConfig, *, needs_answer: bool = True, prompt_only: bool = False) -> RowParser:
    """Return the parser of the rows that `data` names."""
    return RowParser(
        columns=tuple(sorted(data.columns.items())),
        needs_answer=needs_answer,
        prompt_only=prompt_only,
        train_on=data.train_on,
    )


def parse_row(row: object) -> Conversation:
    """Return the row's conversation with its answer. Raises DataError as `RowParser` does."""
    return RowParser()(row)


def parse_prompt(row: object) -> Conversation:
    """Return what the row asks: its conversation up to the assistant's last message, whether there is one or not.

    Raises DataError as `RowParser` does.
    """
    return RowParser(prompt_only=True)(row)


def _check_object(row: object) -> dict[str, object]:
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, got {describe_type(row)}")
    return cast("dict[str, object]", row)


def _suggest_array(fields: Mapping[str, object]) -> str:
    """Format `if data holds the rows, write them as an array; `, for the one column of a row; else empty."""
    name, value = next(iter(fields.items()), ("", None))
    holds_rows = len(fields) == 1 and isinstance(value, list) and value and isinstance(value[0], dict)
    return f"if {name} holds the rows, write them as an array; " if holds_rows else ""


def _describe_keys(fields: Mapping[str, object]) -> str:
    return f"the keys {', '.join(map(str, fields))}" if fields else "no keys"


def _check_no_media(fields: Mapping[str, object]) -> None:
    """Raise DataError for a row that is about more than its text, without which it would be another row."""
    for key in MEDIA:
        if fields.get(key) not in (None, [], {}):
            raise DataError(f"it has {key}, and rayqd trains on text alone: leave such rows out with data.filter")
