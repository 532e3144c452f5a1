"""What a row of a data set says: a conversation, as messages.

A row is {"messages": [{"role", "content"}, ...]} that ends with the assistant's message, or {"prompt", "completion"}
(also {"prompt", "response"}), or {"text"}, all of which is trained on. "finish_reason": "length" beside them says that
the completion was cut, and has no end; other keys are ignored. Who wants prompts alone reads rows with `parse_prompt`,
which needs no completion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from rayqd.errors import DataError

ROLES = ("system", "user", "assistant", "tool")
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "pixel_values")
TEXT = "text"  # stands for a role where the row is no conversation

Message = dict[str, str]  # "role", one of ROLES, and "content"; of a completion that was cut also FINISH_REASON: CUT
FINISH_REASON, CUT = "finish_reason", "length"  # as every serving API calls it
Parse = Callable[[object], list[Message]]


def parse_row(row: object) -> list[Message]:
    """Return the row's conversation, or one message of role TEXT.

    Raises DataError that says what is wrong with the row, without its location.
    """
    fields = _check_object(row)
    _check_no_media(fields)
    messages = fields.get("messages")
    if messages is None and fields.get("prompt") is None and fields.get("text") is not None:
        return [{"role": TEXT, "content": _check_text(fields["text"], "text")}]
    parsed = _parse_messages(_messages_of_pair(fields) if messages is None else messages)
    if parsed[-1]["role"] != "assistant":
        raise DataError(f"the last message must be the assistant's, got {parsed[-1]['role']!r}")
    if len(parsed) == 1:
        raise DataError("there is an answer but nothing before it to answer")
    if fields.get(FINISH_REASON) == CUT:
        parsed[-1][FINISH_REASON] = CUT
    return parsed


def parse_prompt(row: object) -> list[Message]:
    """Return what the row asks: its conversation up to the assistant's last message, whether there is one or not.

    Raises DataError as `parse_row` does.
    """
    fields = _check_object(row)
    _check_no_media(fields)
    messages: object = fields.get("messages")
    if messages is None and fields.get("prompt") is None:
        raise DataError(f"there is nothing to answer: neither messages nor prompt, got {_describe_keys(fields)}")
    if messages is None:
        return [{"role": "user", "content": _check_text(fields["prompt"], "prompt")}]
    if isinstance(messages, list) and messages and _is_from_assistant(cast(list[object], messages)[-1]):
        messages = cast(list[object], messages)[:-1]
        if not messages:
            raise DataError("there is an answer but nothing before it to answer")
    return _parse_messages(messages)


def _check_object(row: object) -> dict[str, object]:
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, got {_describe_type(row)}")
    return cast(dict[str, object], row)


def _describe_keys(fields: dict[str, object]) -> str:
    return f"the keys {', '.join(fields)}" if fields else "no keys"


def _is_from_assistant(message: object) -> bool:
    return isinstance(message, dict) and cast(dict[str, object], message).get("role") == "assistant"


def _parse_messages(messages: object) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"messages must be a list with something in it, got {_describe_type(messages)}")
    return [_parse_message(message, f"messages[{i}]") for i, message in enumerate(cast(list[object], messages))]


def _messages_of_pair(row: dict[str, object]) -> list[Message]:
    completion = "response" if row.get("completion") is None else "completion"
    for key in ("prompt", completion):
        if row.get(key) is None:
            raise DataError(
                f"neither messages nor prompt with completion or response, nor text, got {_describe_keys(row)}"
            )
    return [
        {"role": "user", "content": _check_text(row["prompt"], "prompt")},
        {"role": "assistant", "content": _check_text(row[completion], completion)},
    ]


def _parse_message(message: object, name: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{name} must be an object with role and content, got {_describe_type(message)}")
    fields = cast(dict[str, object], message)
    role = fields.get("role")
    if role not in ROLES:
        raise DataError(f"{name}.role must be one of {', '.join(ROLES)}, got {role!r}")
    return {"role": role, "content": _check_text(fields.get("content"), f"{name}.content")}


def _check_no_media(fields: dict[str, object]) -> None:
    """Raise DataError for a row that is about more than its text, without which it would be another row."""
    for key in MEDIA:
        if fields.get(key) not in (None, [], {}):
            raise DataError(f"it has {key}, and rayqd trains on text alone: leave such rows out with data.filter")


def _check_text(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{name} must be text, got {_describe_type(text)}")
    if not text.strip():
        raise DataError(f"{name} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may hold it, no tokenizer takes it
        raise DataError(f"{name} holds half of a surrogate pair at character {error.start}") from error
    return text


def _describe_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    if value is None:
        return "nothing"
    if value == []:
        return "an empty list"
    return names.get(type(value), type(value).__name__)
