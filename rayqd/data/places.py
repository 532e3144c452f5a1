"""Whether a template has a place for all that a row says: what it leaves out, the model would never be asked."""

from __future__ import annotations

from rayqd.data.messages import Conversation, Json, Message
from rayqd.data.thought import REASONING
from rayqd.errors import DataError

_SPOKEN_TO = ("system", "developer", "user")  # templates write what these say as it is


def check_places(conversation: Conversation, prompt: str, text: str) -> None:
    """Raise DataError where the template left out a tool, a call, or what somebody says.

    `prompt` and `text` are what it made of the conversation without and with the last answer.
    """
    for tool in conversation.tools or ():
        name = _tool_name(tool)
        if name is not None and name not in prompt:
            raise DataError(
                f"tools: the chat template has no place for them, {name} is not in its text; give one that has by "
                "data.chat_template, or leave tools out of the row"
            )
    for index, message in enumerate(conversation):
        if (left_out := _find_left_out(message, text)) is not None:
            raise DataError(
                f"messages[{index}].{left_out}: the chat template has no place for it; give one that has by "
                "data.chat_template, or leave it out of the row"
            )


def check_reasoning(conversation: Conversation, completion: str) -> None:
    """Raise DataError where the last answer's thought is not in `completion`, what the template made of the answer."""
    answer = conversation[-1]
    for field in REASONING:
        thought = answer.get(field)
        if isinstance(thought, str) and thought.strip() not in completion:
            raise DataError(
                f"messages[{len(conversation) - 1}].{field}: the chat template has no place for it; give one that has "
                "by data.chat_template, or leave it out of the row"
            )


def _find_left_out(message: Message, text: str) -> str | None:
    content = message.get("content")
    if message.get("role") in _SPOKEN_TO and isinstance(content, str) and content.strip() not in text:
        return f"content, of role {message['role']}"
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        name = _tool_name(call)
        if name is not None and name not in text:
            return "tool_calls"
    return None


def _tool_name(tool: Json) -> str | None:
    if not isinstance(tool, dict):
        return None
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
