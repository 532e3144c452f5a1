"""The shapes in which people have conversations, each told by the columns of a row: its messages, or prompt and answer.

A row that has the columns of two shapes is taken as the fuller one where that has all text of the other (a prompt
beside the messages that begin with it, the rendered `text` beside the answer in it), and is refused where it has not.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from rayqd.data.messages import TEXT, Conversation, Json, check_text, describe_type, parse_messages, parse_tools
from rayqd.data.nearest import nearest
from rayqd.data.sharegpt import is_sharegpt, parse_sharegpt
from rayqd.errors import DataError

Fields = Mapping[str, object]

_SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Columns by which a row is told, and what makes a conversation of them."""

    name: str  # for people
    columns: tuple[tuple[str, ...], ...]  # one of each must be there
    parse: Callable[[Fields, Sequence[str]], Conversation]  # of a row, and of the columns found in it

    def find(self, columns: Collection[str]) -> tuple[str, ...] | None:
        """Return those of `columns` that are of it; None if it lacks one."""
        found = [next((name for name in names if name in columns), None) for names in self.columns]
        return None if None in found else tuple(cast("list[str]", found))


def parse_shape(row: Fields) -> Conversation | None:
    """Return the conversation of a row that is recognized; None where it has the columns of no shape.

    Raises DataError where a column holds what it cannot, and where a row is in two shapes that differ.
    """
    found = list(_recognize(row))
    if not found:
        return None
    best = max(found, key=lambda each: (each.has_answer and not each.is_text, not each.is_text, _num_characters(each)))
    for other in found:
        if other is not best and not _is_within(other, best):
            raise DataError(
                f"the row is in two shapes at once, {best.shape} and {other.shape}, and they differ: say which columns "
                'count, as data.columns = {prompt = "...", completion = "..."}'
            )
    _add_about(best, row)
    return best


def rename_columns(row: Fields, columns: Mapping[str, str]) -> Fields:
    """Return the row with the columns that `data.columns` names, by the names that rayqd has for them, and no others.

    Raises DataError with the nearest name where the row lacks one.
    """
    for name, column in columns.items():
        if column not in row:
            near = nearest(column, map(str, row))
            hint = f"did you mean {near}?" if near else f"there are {', '.join(map(str, row)) or 'none'}"
            raise DataError(f'data.columns: {name} = "{column}" is no column of this row; {hint}')
    kept = {key: row[key] for key in ("finish_reason",) if key in row}
    if isinstance(row.get("label"), bool):  # whether the answer is wanted, as in KTO's data
        kept["label"] = row["label"]
    return kept | {name: row[column] for name, column in columns.items()}


def _recognize(row: Fields) -> Iterator[Conversation]:
    """Yield the conversation of every shape that the row has; a part of another shape is none of its own."""
    for shape, columns in _find_shapes(tuple(column for column, value in row.items() if value is not None)):
        conversation = shape.parse(row, columns)
        conversation.shape = conversation.shape or f"{shape.name} ({', '.join(columns)})"
        yield conversation


@lru_cache(maxsize=1024)
def _find_shapes(columns: tuple[str, ...]) -> tuple[tuple[Shape, tuple[str, ...]], ...]:
    """Return the shapes of a row that has something in `columns`, each with those of its own."""
    found = [(shape, own) for shape in SHAPES if (own := shape.find(columns)) is not None]
    return tuple((shape, own) for shape, own in found if not any(set(own) < set(others) for _, others in found))


def _add_about(conversation: Conversation, row: Fields) -> None:
    if conversation.is_text:
        return
    conversation.tools = parse_tools(row.get("tools"))
    system = next((row[name] for name in _SYSTEM if isinstance(row.get(name), str) and str(row[name]).strip()), None)
    if isinstance(system, str) and conversation[0].get("role") not in ("system", "developer"):
        conversation.insert(0, {"role": "system", "content": check_text(system, "system")})
        conversation.untrained = frozenset(index + 1 for index in conversation.untrained)


def _parse_messages(row: Fields, columns: Sequence[str]) -> Conversation:
    (column,) = columns
    messages = _from_json(row[column], column)
    if is_sharegpt(messages):
        conversation = parse_sharegpt(messages, column)
        conversation.shape = f"ShareGPT ({column})"
        return conversation
    return parse_messages(messages, column)


def _from_json(messages: object, column: str) -> object:
    """Return what a cell of a table holds as text, which has no other way to hold messages."""
    if not isinstance(messages, str) or not messages.strip():
        return messages
    try:
        return json.loads(messages)
    except ValueError as error:
        raise DataError(f"{column} is text, and not the JSON of messages ({error})") from error


def _parse_pair(row: Fields, columns: Sequence[str]) -> Conversation:
    prompt, completion = columns
    before = _parse_prompt(row, prompt)
    if isinstance(row[completion], list):
        after = parse_messages(row[completion], completion)
        if len(after) > 1 and list(after[: len(before)]) == list(before):
            return after  # as preference data often has it: the whole conversation once more
        return _join(before, after)
    return _join(before, Conversation([_message("assistant", row[completion], completion)]))


def _parse_chosen(row: Fields, columns: Sequence[str]) -> Conversation:
    (column,) = columns
    if isinstance(row[column], list):
        return parse_messages(row[column], column)
    raise DataError(f"{column} is {describe_type(row[column])} without a prompt: give both, or messages")


def _parse_instruction(row: Fields, columns: Sequence[str]) -> Conversation:
    instruction, output = columns
    return _join(_parse_prompt(row, instruction), Conversation([_message("assistant", row[output], output)]))


def _parse_text(row: Fields, columns: Sequence[str]) -> Conversation:
    (column,) = columns
    return Conversation([_message(TEXT, row[column], column)])


def _parse_prompt_alone(row: Fields, columns: Sequence[str]) -> Conversation:
    return _parse_prompt(row, columns[0])


def _parse_prompt(row: Fields, column: str) -> Conversation:
    prompt = row[column]
    if isinstance(prompt, list) and all(isinstance(message, dict) for message in cast("list[object]", prompt)):
        return parse_sharegpt(prompt, column) if is_sharegpt(prompt) else parse_messages(prompt, column)
    text = check_text(prompt, column)
    extra = next((name for name in _INPUTS[column] if _has_text(row.get(name))), None) if column in _INPUTS else None
    if extra is not None:
        text = f"{text}\n{check_text(row[extra], extra)}"
    return Conversation([{"role": "user", "content": text}])


def _join(before: Conversation, after: Conversation) -> Conversation:
    shift = len(before)
    untrained = {*before.untrained, *(index + shift for index in after.untrained)}
    return Conversation([*before, *after], untrained=untrained)


def _message(role: str, text: object, column: str) -> dict[str, Json]:
    return {"role": role, "content": check_text(text, column)}


def _has_text(value: object) -> bool:
    return value is not None and (not isinstance(value, str) or bool(value.strip()))


def _texts(conversation: Conversation) -> list[str]:
    return [content.strip() for message in conversation if isinstance(content := message.get("content"), str)]


def _num_characters(conversation: Conversation) -> int:
    return sum(map(len, _texts(conversation)))


def _is_within(other: Conversation, best: Conversation) -> bool:
    """Return whether `best` says all that `other` does, or is what `other` was rendered from."""
    if other.is_text:
        return _texts(best)[-1] in _texts(other)[0]
    texts = _texts(best)
    return all(any(part in text for text in texts) for part in _texts(other))


_INPUTS = {"instruction": ("input", "context"), "prompt": ("input",)}
"""Columns with what an instruction is about; they follow it after a line break."""


@lru_cache(maxsize=64)  # of a broken file every row asks
def suggest_column(columns: tuple[str, ...]) -> str:
    """Format `did you mean messages by mesages? `, of the column that looks most like one of a shape; else empty."""
    known = {name for shape in SHAPES for names in shape.columns for name in names}.difference(columns)
    pairs = ((column, nearest(column, sorted(known), likeness=0.8)) for column in columns)
    near = [(column, name) for column, name in pairs if name is not None]
    if not near:
        return ""
    column, name = max(near, key=lambda pair: difflib.SequenceMatcher(None, *pair).ratio())
    return f"did you mean {name} by {column}? "


_ANSWERS = ("completion", "response")

SHAPES = (
    Shape(name="messages", columns=(("messages",),), parse=_parse_messages),
    Shape(name="messages", columns=(("conversations", "conversation"),), parse=_parse_messages),
    Shape(name="preference pairs, the chosen one", columns=(("prompt",), ("chosen",)), parse=_parse_pair),
    Shape(name="preference pairs, the chosen one", columns=(("chosen",),), parse=_parse_chosen),
    Shape(name="prompt and answer", columns=(("prompt",), _ANSWERS), parse=_parse_pair),
    Shape(name="Alpaca", columns=(("instruction",), ("output", *_ANSWERS)), parse=_parse_instruction),
    Shape(name="question and answer", columns=(("question",), ("answer", *_ANSWERS)), parse=_parse_instruction),
    Shape(name="plain text", columns=(("text",),), parse=_parse_text),
    Shape(name="prompts", columns=(("prompt",),), parse=_parse_prompt_alone),
    Shape(name="prompts", columns=(("instruction",),), parse=_parse_prompt_alone),
    Shape(name="prompts", columns=(("question",),), parse=_parse_prompt_alone),
)
"""In this order the first one counts where two are equally full."""
