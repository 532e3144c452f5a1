"""Answers behind a thought that the generation prompt has opened, as R1's and its kin's does:

    prompt      <|im_start|>assistant\\n<think>\\n
    history     <|im_start|>assistant\\n Paris.<|im_end|>     what the template makes of an answer in a conversation

The answer follows the opened thought. Where the row has the thought, in the content or as `reasoning_content`, it comes
first and is closed, also where the template leaves it out of what it writes of a conversation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayqd.data.messages import Message
from rayqd.errors import DataError

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that templates read a thought from."""

_TAG = re.compile(r"<[^<>/\s]+>|\[[A-Z_]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What a generation prompt writes that no answer in a conversation starts with."""

    text: str
    tag: str  # that begins a thought; "" where there is none
    is_closed: bool  # the thought ends before the answer starts

    @property
    def closing_tag(self) -> str:
        """Return what ends the thought."""
        return f"{self.tag[0]}/{self.tag[1:]}" if self.tag else ""

    @property
    def opens_thought(self) -> bool:
        """Return whether what follows is a thought."""
        return bool(self.tag) and not self.is_closed


def parse_opening(text: str) -> Opening:
    """Return what `text`, the rest of a generation prompt, begins with."""
    found = _TAG.search(text)
    tag = found[0] if found else ""
    closing = f"{tag[0]}/{tag[1:]}" if tag else ""
    return Opening(text=text, tag=tag, is_closed=bool(tag) and closing in text)


def common_prefix(text: str, other: str) -> int:
    """Return the number of characters that both start with, without the first ones of a tag that one of them has."""
    length = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    while length and length < len(text) and text[length - 1] in "<[/|":
        length -= 1
    return length


def continue_thought(opening: Opening, written: str, answer: Message) -> str:
    """Return what follows the opening: `written`, which the template makes of `answer`, with the row's thought.

    Raises DataError where the answer has a thought and the generation prompt has ended its own.
    """
    bare = written.lstrip()
    if opening.tag and bare.startswith(opening.tag):
        if opening.is_closed:
            raise DataError(
                f"the answer starts with {opening.tag}, and the chat template's generation prompt ends the thought: "
                "let it think by data.chat_template_kwargs, or leave the thought out"
            )
        behind_tag = opening.text.partition(opening.tag)[2]
        return bare.removeprefix(opening.tag).removeprefix(behind_tag)
    if not opening.opens_thought:
        return written
    thought, space = _find_thought(opening, answer)
    if not thought.strip() or thought.strip() in written:
        return written
    return f"{thought}{opening.closing_tag}{space}{bare}"


def _find_thought(opening: Opening, answer: Message) -> tuple[str, str]:
    """Return the row's thought, without its opening, and the white space that comes after its closing tag."""
    content = answer.get("content")
    if isinstance(content, str) and opening.closing_tag in content:
        thought, _, rest = content.partition(opening.closing_tag)
        behind_tag = opening.text.partition(opening.tag)[2]
        own = thought.lstrip()
        thought = own.removeprefix(opening.tag).removeprefix(behind_tag) if own.startswith(opening.tag) else thought
        return thought, rest[: len(rest) - len(rest.lstrip())]
    reasoning = next((value for key in REASONING if isinstance(value := answer.get(key), str)), "")
    return f"{reasoning.strip()}\n" if reasoning.strip() else "", "\n\n"
