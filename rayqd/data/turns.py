"""Where the assistant's earlier turns stand in a prompt, and the tokens that they are: `data.train_on = "all"`.

A template may write a turn in another way once others follow it, so none is looked for by its text. The prompt is
rendered once more with a marker in the turn's place, and what stands before and after the marker bounds the turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.encode import Span
from rayqd.data.messages import Conversation, Message
from rayqd.data.render import TurnForm, find_turn_form, render
from rayqd.data.thought import common_prefix
from rayqd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = "\ue000rayqd\ue001"  # private characters, which no text has


def find_earlier_turns(
    tokenizer: PreTrainedTokenizerBase, before: Conversation, chat: ChatSettings, prompt: str
) -> list[Span]:
    """Return the spans of `prompt`, rendered from `before`, that the assistant wrote, each with its end of turn.

    Answers of weight 0 are left out. Raises DataError where the template's text does not tell where one stands.
    """
    form = find_turn_form(tokenizer, chat)
    trained = [i for i, m in enumerate(before) if m.get("role") == "assistant" and i not in before.untrained]
    return [_find_turn(tokenizer, before, index, chat, prompt, form) for index in trained]


def _find_turn(
    tokenizer: PreTrainedTokenizerBase,
    before: Conversation,
    index: int,
    chat: ChatSettings,
    prompt: str,
    form: TurnForm,
) -> Span:
    marked: list[Message] = list(before)
    marked[index] = {"role": "assistant", "content": _MARKER}
    text = render(tokenizer, marked, chat, tools=before.tools, add_generation_prompt=True)
    left, found, right = text.partition(_MARKER)
    if not found or not prompt.endswith(right):
        raise DataError(
            f"where the answer messages[{index}] stands cannot be told from the chat template's text: "
            'set data.train_on = "last", or leave such rows out'
        )
    start = common_prefix(prompt, left)
    if form.header and (header := prompt.rfind(form.header, 0, start)) >= 0:
        start = header + len(form.header)
    end = len(prompt) - len(right)
    if end <= start:
        raise DataError(f"the chat template leaves the answer messages[{index}] out")
    return start, end + len(_end_of_turn(right, form))


def _end_of_turn(right: str, form: TurnForm) -> str:
    return form.end if right.startswith(form.end) else ""
