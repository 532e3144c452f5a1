"""Conversations for the tests of chat templates."""

from __future__ import annotations

from rayqd.data import Message


def chat(*contents: str, system: str | None = None) -> list[Message]:
    """The user's and the assistant's turns, one after the other."""
    roles = ["user", "assistant"] * len(contents)
    start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return start + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
