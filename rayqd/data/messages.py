"""A conversation as chat templates take it: messages with whatever fields a template may read, and the tools at hand.

Fields that are null are left out, as a table has them where other rows have a value. Content in parts becomes text, and
a tool call's arguments become an object where they are one in JSON, as serving engines do it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

from rayqd.errors import DataError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Message = dict[str, Json]  # "role" and "content", and what else the row has: tool_calls, name, reasoning_content, ...

ROLES = ("system", "user", "assistant", "tool", "developer", "function")
TEXT = "text"  # stands for a role where the row is no conversation
WEIGHT = "weight"  # of an answer, as in OpenAI's files: 0 is not trained on; no template sees it


class Conversation(list[Message]):
    """The messages of a row, in order, and what the row says beside them."""

    def __init__(
        self,
        messages: Iterable[Message] = (),
        *,
        tools: Sequence[Json] | None = None,
        is_cut: bool = False,
        untrained: Iterable[int] = (),
        shape: str = "",
    ) -> None:
        """Take messages without their weights.

        `tools`: as JSON schemas. `is_cut`: the last answer has no end. `untrained`: indices of answers of weight 0.
        `shape`: how rows of this kind are called, for people.
        """
        super().__init__(messages)
        self.tools = list(tools) if tools else None
        self.is_cut = is_cut
        self.untrained = frozenset(untrained)
        self.shape = shape

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Conversation:
        """Return `messages` if they are a conversation already, else one of nothing but them."""
        return messages if isinstance(messages, Conversation) else cls(messages)

    def without_last(self) -> Conversation:
        """Return what its last message answers."""
        last = len(self) - 1
        return Conversation(self[:-1], tools=self.tools, untrained=self.untrained - {last}, shape=self.shape)

    @property
    def is_text(self) -> bool:
        """Whether it is plain text, all of which is trained on."""
        return bool(self) and self[0].get("role") == TEXT

    @property
    def has_answer(self) -> bool:
        """Whether it ends with an answer that is to be trained on."""
        return self.is_text or self._answers(-1)

    def _answers(self, index: int) -> bool:
        return self[index].get("role") == "assistant" and len(self) + index not in self.untrained


def parse_messages(messages: object, field: str) -> Conversation:
    """Return `messages`, the list that the row has at `field`. Raises DataError that names field and fault."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{field} must be a list with something in it, got {describe_type(messages)}")
    parsed: list[Message] = []
    untrained: list[int] = []
    for index, message in enumerate(cast("list[object]", messages)):
        name = f"{field}[{index}]"
        fields = _check_message(message, name)
        if not _parse_weight(fields.pop(WEIGHT, None), fields, name):
            untrained.append(index)
        parsed.append(_parse_message(fields, name))
    return Conversation(parsed, untrained=untrained)


def parse_tools(tools: object) -> list[Json] | None:
    """Return the row's tools, a list or its JSON text; None where there are none. Raises DataError."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError(f"tools is text, and not JSON ({error})") from error
    if tools is None or tools in ("", []):
        return None
    if not isinstance(tools, list):
        raise DataError(f"tools must be a list of objects, got {describe_type(tools)}")
    for index, tool in enumerate(cast("list[object]", tools)):
        if not isinstance(tool, dict):
            raise DataError(f"tools[{index}] must be an object, got {describe_type(tool)}")
    return cast("list[Json]", tools)


def _check_message(message: object, name: str) -> dict[str, Json]:
    if not isinstance(message, dict):
        raise DataError(f"{name} must be an object with role and content, got {describe_type(message)}")
    given = cast("dict[str, Json]", message)
    fields = {key: value for key, value in given.items() if value is not None or key == "content"}
    if fields.get("role") not in ROLES:
        raise DataError(f"{name}.role must be one of {', '.join(ROLES)}, got {fields.get('role')!r}")
    return fields


def _parse_message(fields: dict[str, Json], name: str) -> Message:
    if calls := fields.get("tool_calls"):
        fields["tool_calls"] = _parse_calls(calls, f"{name}.tool_calls")
        fields.setdefault("content", None)  # which OpenAI's files may leave out, and templates ask for
    else:
        fields.pop("tool_calls", None)
    content = fields.get("content")
    if isinstance(content, list) and content and not isinstance(content[0], str):
        content = fields["content"] = _join_parts(cast("list[object]", content), f"{name}.content")
    if "tool_calls" not in fields or content not in (None, ""):
        check_text(content, f"{name}.content", may_be_empty=fields["role"] in ("tool", "function"))
    for key in ("reasoning_content", "reasoning", "thinking"):
        if isinstance(fields.get(key), str) and not str(fields[key]).strip():
            del fields[key]
    return fields


def _parse_weight(weight: Json, fields: dict[str, Json], name: str) -> bool:
    """Return whether the message may be trained on."""
    if weight is None:
        return True
    if isinstance(weight, bool) or weight not in (0, 1):
        raise DataError(f"{name}.weight must be 0 or 1, got {weight!r}")
    if fields["role"] != "assistant":
        raise DataError(f"{name}.weight is of a {fields['role']} message: only answers are trained on; leave it out")
    return weight == 1


def _parse_calls(calls: Json, name: str) -> list[Json]:
    if not isinstance(calls, list):
        raise DataError(f"{name} must be a list of objects, got {describe_type(calls)}")
    return [_parse_call(call, f"{name}[{index}]") for index, call in enumerate(calls)]


def _parse_call(call: Json, name: str) -> Json:
    if not isinstance(call, dict):
        raise DataError(f"{name} must be an object, got {describe_type(call)}")
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": _with_parsed_arguments(function)}
    if function is None and isinstance(call.get("name"), str):
        return _with_parsed_arguments(call)
    raise DataError(f"{name} must have a function with name and arguments")


def _with_parsed_arguments(function: dict[str, Json]) -> dict[str, Json]:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return function
    try:
        parsed: Json = json.loads(arguments)
    except ValueError:
        return function  # no JSON: the template's business
    return {**function, "arguments": parsed} if isinstance(parsed, dict) else function


def _join_parts(parts: list[object], name: str) -> str:
    return "".join(_text_of_part(part, f"{name}[{index}]") for index, part in enumerate(parts))


def _text_of_part(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise DataError(f"{name} must be a part with type and text, got {describe_type(part)}")
    fields = cast("dict[str, object]", part)
    kind, text = fields.get("type"), fields.get("text")
    if kind not in ("text", None) or not isinstance(text, str):
        what = f"a part of type {kind!r}" if kind not in ("text", None) else "a part without text"
        raise DataError(f"{name} is {what}, and rayqd trains on text alone: leave such rows out with data.filter")
    return text


def check_text(text: object, name: str, *, may_be_empty: bool = False) -> str:
    """Return `text` if it is text that a tokenizer takes; raises DataError with `name` if not."""
    if not isinstance(text, str):
        raise DataError(f"{name} must be text, got {describe_type(text)}")
    if not text.strip() and not may_be_empty:
        raise DataError(f"{name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold it, no tokenizer takes it
        raise DataError(f"{name} holds half of a surrogate pair at character {error.start}") from error
    return text


def describe_type(value: object) -> str:
    """Return what JSON calls the type of `value`, with an article."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "nothing"
    if value == []:
        return "an empty list"
    return names.get(type(value), type(value).__name__)
