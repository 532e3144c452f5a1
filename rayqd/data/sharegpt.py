"""Conversations as ShareGPT has them: a list of {"from": "human", "value": "..."}."""

from __future__ import annotations

import json
from typing import cast

from rayqd.data.messages import WEIGHT, Conversation, Json, describe_type, parse_messages
from rayqd.errors import DataError

ROLES = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Who speaks, as a chat template calls them."""


def is_sharegpt(messages: object) -> bool:
    """Return whether `messages` is a list whose first entry says who it is `from`."""
    if not isinstance(messages, list) or not messages:
        return False
    first = cast("list[object]", messages)[0]
    return isinstance(first, dict) and "from" in first and "role" not in first


def parse_sharegpt(entries: object, field: str) -> Conversation:
    """Return the entries that the row has at `field` as messages. Raises DataError that names field and fault."""
    messages = [_to_message(entry, f"{field}[{i}]") for i, entry in enumerate(cast("list[object]", entries))]
    return parse_messages(messages, field)


def _to_message(entry: object, name: str) -> dict[str, Json]:
    if not isinstance(entry, dict):
        raise DataError(f"{name} must be an object with from and value, got {describe_type(entry)}")
    fields = cast("dict[str, Json]", entry)
    speaker, value = fields.get("from"), fields.get("value")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise DataError(f"{name}.from must be one of {', '.join(ROLES)}, got {speaker!r}")
    if "value" not in fields:
        raise DataError(f"{name} has no value, got the keys {', '.join(fields)}")
    weight: dict[str, Json] = {WEIGHT: fields[WEIGHT]} if WEIGHT in fields else {}
    if speaker == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _parse_calls(value, f"{name}.value"), **weight}
    return {"role": ROLES[speaker], "content": value, **weight}


def _parse_calls(value: Json, name: str) -> list[Json]:
    """Return the calls that the text of a function_call holds, one or a list of them."""
    try:
        calls: Json = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise DataError(f"{name} must be the JSON of a call, with name and arguments ({error})") from error
    return [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
