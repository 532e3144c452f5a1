"""What a generation prompt writes beyond the text that stands before an answer in a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.messages import Conversation, Message
from rayqd.data.render import has_template, render
from rayqd.data.thought import Opening, common_prefix, parse_opening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = "\ue000rayqd\ue001"  # private characters, which no text has


def find_opening(
    tokenizer: PreTrainedTokenizerBase, chat: ChatSettings, before: Conversation, prompt: str
) -> Opening | None:
    """Return it for `prompt`, rendered from `before`; None where the template writes answers after other text."""
    asked = render(tokenizer, before, chat, tools=before.tools, add_generation_prompt=False)
    answer: Message = {"role": "assistant", "content": _MARKER}
    whole = render(tokenizer, [*before, answer], chat, tools=before.tools, add_generation_prompt=False)
    header = whole.partition(_MARKER)[0]
    shared = common_prefix(prompt, header)
    rest = header[shared:].strip()  # where the generation prompt opens a thought, the template may close an empty one
    if not prompt.startswith(asked) or shared < len(asked) or not (rest == "" or rest.startswith(("</", "[/"))):
        return None
    return parse_opening(prompt[shared:])


def opened_thought(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings, before: Conversation) -> str:
    """Return the text with which the generation prompt after `before` begins a thought; empty where it begins none."""
    if not has_template(tokenizer, chat):
        return ""
    prompt = render(tokenizer, before, chat, tools=before.tools, add_generation_prompt=True)
    opening = find_opening(tokenizer, chat, before, prompt)
    if opening is None or not opening.opens_thought:
        return ""
    return opening.text[opening.text.index(opening.tag) :]
