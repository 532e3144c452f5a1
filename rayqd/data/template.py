"""One conversation as tokens: the prompt as an engine would get it, and the completion up to its end-of-turn token.

A completion that was cut has no end-of-turn token.

<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|> | \\n
prompt_ids                                              | completion_ids  | left out: nobody generates it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.encode import Encoder, RenderedRow, Span, tokenize
from rayqd.data.messages import Conversation, Message
from rayqd.data.opening import find_opening
from rayqd.data.places import check_places, check_reasoning
from rayqd.data.render import eos_token, find_turn_form, has_template, name_of, render, special_tokens
from rayqd.data.thought import continue_thought
from rayqd.data.turns import find_earlier_turns
from rayqd.errors import DataError, ModelError
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = ChatSettings()
_TEKKEN = "tekken.json"  # Mistral's own format, whose template mistral-common makes


def tokenize_example(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], row: int, chat: ChatSettings = PLAIN
) -> Example:
    """Tokenize all but the last message as the prompt, generation prompt included, and the last one as the completion.

    A conversation that does not end with an answer is a prompt with an empty completion. Of a plain text all but the
    first token is completion; special tokens in it are read as such. A tokenizer without a chat template takes one
    prompt and one completion as plain text, with its end-of-text token.
    Raises DataError, without a location, if the template cannot write these messages; ModelError if it can write none.
    """
    (example,) = tokenize_examples(Encoder(tokenizer), [Conversation.of(messages)], [row], chat)
    if isinstance(example, DataError):
        raise example
    return example


def tokenize_examples(
    encoder: Encoder, conversations: Sequence[Conversation], rows: Sequence[int], chat: ChatSettings
) -> list[Example | DataError]:
    """Return what `tokenize_example` makes of conversation i, which is row `rows[i]`, or the error that it raises."""
    tokenizer = encoder.tokenizer
    made: dict[int, Example | DataError] = {}
    rendered: dict[int, RenderedRow] = {}
    texts: dict[int, str] = {}
    for index, conversation in enumerate(conversations):
        if conversation.is_text:
            texts[index] = str(conversation[0]["content"])
            continue
        try:
            rendered[index] = _render_row(tokenizer, conversation, chat)
        except DataError as error:
            made[index] = error
    for index, tokens in zip(rendered, encoder.encode(list(rendered.values())), strict=True):
        made[index] = _example(rows[index], tokens.prompt_ids, tokens.completion_ids, tokens.trained)
    for index, text in zip(texts, tokenize(tokenizer, list(texts.values()), special=True), strict=True):
        made[index] = _plain_text(tokenizer, text.ids, rows[index])
    return [made[index] for index in range(len(rows))]


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: ChatSettings = PLAIN
) -> IntArray:
    """Return [P], the prompt that `tokenize_example` makes of these messages and a completion.

    Raises DataError and ModelError as it does.
    """
    prompt = _render_prompt(tokenizer, Conversation.of(messages), chat)
    return np.asarray(_ids(tokenizer, prompt), dtype=np.int32)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings = PLAIN) -> str:
    """Return the text that every completion ends with unless it was cut; its last token ends the turn."""
    return find_turn_form(tokenizer, chat).end if has_template(tokenizer, chat) else eos_token(tokenizer)


def _example(
    row: int,
    prompt_ids: Sequence[int] | IntArray,
    completion_ids: Sequence[int] | IntArray,
    trained: NDArray[np.bool_] | None = None,
) -> Example:
    return Example(
        row=row,
        prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
        completion_ids=np.asarray(completion_ids, dtype=np.int32),
        trained=trained,
    )


def _render_row(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, chat: ChatSettings) -> RenderedRow:
    if conversation[-1].get("role") != "assistant":
        return RenderedRow(prompt=_render_prompt(tokenizer, conversation, chat))
    is_template = has_template(tokenizer, chat)
    rendered = _render_chat if is_template else _render_plain
    prompt, completion, end = rendered(tokenizer, conversation, chat)
    spans: list[Span] = []
    if chat.train_on == "all" and is_template:
        spans = find_earlier_turns(tokenizer, conversation.without_last(), chat, prompt)
    return RenderedRow(
        prompt=prompt,
        completion=completion if conversation.is_cut else completion + end,
        spans=spans,
        has_answer=conversation.has_answer,
    )


def _render_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, chat: ChatSettings) -> str:
    if not has_template(tokenizer, chat):
        return _plain_prompt(tokenizer, conversation)
    prompt = render(tokenizer, conversation, chat, tools=conversation.tools, add_generation_prompt=True)
    check_places(conversation, prompt, prompt)
    return prompt


def _plain_text(tokenizer: PreTrainedTokenizerBase, ids: list[int], row: int) -> Example | DataError:
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        ids = ids[1:]  # the text has it already
    if len(ids) < 2:
        return DataError("text is a single token, which leaves nothing to predict")
    return _example(row, ids[:1], ids[1:])


def _render_chat(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, chat: ChatSettings
) -> tuple[str, str, str]:
    """Return the text of the prompt, of the completion, and of its end up to the template's end-of-turn token."""
    form = find_turn_form(tokenizer, chat)
    before = conversation.without_last()
    prompt = render(tokenizer, before, chat, tools=conversation.tools, add_generation_prompt=True)
    whole = render(tokenizer, conversation, chat, tools=conversation.tools, add_generation_prompt=False)
    completion = (
        whole[len(prompt) :]
        if whole.startswith(prompt)
        else _follow_opening(tokenizer, conversation, chat, prompt, whole)
    )
    check_places(conversation, prompt, whole)
    check_reasoning(conversation, completion)
    if completion.endswith(form.tail):
        return prompt, completion.removesuffix(form.tail), form.end
    if conversation[-1].get("tool_calls") and (end := _find_own_end(tokenizer, completion)):
        return prompt, completion.rstrip().removesuffix(end), end
    raise DataError(f"the chat template ends this answer with {completion[-40:]!r} and others with {form.tail!r}")


def _follow_opening(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, chat: ChatSettings, prompt: str, whole: str
) -> str:
    """Return what comes after a generation prompt that the template writes no answer of a conversation after."""
    before = conversation.without_last()
    opening = find_opening(tokenizer, chat, before, prompt)
    if opening is None or not whole.startswith(shared := prompt[: len(prompt) - len(opening.text)]):
        raise DataError(
            "the chat template writes the answer after other text than its generation prompt, "
            f"which ends with {prompt[-40:]!r}"
        )
    return continue_thought(opening, whole[len(shared) :], conversation[-1])


def _find_own_end(tokenizer: PreTrainedTokenizerBase, completion: str) -> str:
    """Return the special token that this completion ends with: a call may end otherwise than an answer does."""
    ends = [token for token in special_tokens(tokenizer) if completion.rstrip().endswith(token)]
    return max(ends, key=len, default="")


def _render_plain(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, chat: ChatSettings
) -> tuple[str, str, str]:
    del chat
    prompt = _plain_prompt(tokenizer, conversation.without_last())
    return prompt, str(conversation[-1]["content"]), eos_token(tokenizer)


def _plain_prompt(tokenizer: PreTrainedTokenizerBase, before: Conversation) -> str:
    if (Path(tokenizer.name_or_path) / _TEKKEN).is_file():
        raise ModelError(
            f"{name_of(tokenizer)} has {_TEKKEN} and no chat template: install mistral-common, which makes one of it, "
            "or give data.chat_template, or rows of text"
        )
    if [message["role"] for message in before] != ["user"] or before.tools:
        raise ModelError(
            f"{name_of(tokenizer)} has no chat template, so it takes rows of one prompt and one completion; "
            "use such rows, a model with a chat template, or data.chat_template"
        )
    start = tokenizer.bos_token if _starts_with_bos(tokenizer) else ""
    content = str(before[0]["content"])
    return content if start and content.startswith(str(start)) else f"{start}{content}"


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and _ids(tokenizer, "", special=True)[:1] == [tokenizer.bos_token_id]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    return tokenize(tokenizer, [text], special=special)[0].ids
