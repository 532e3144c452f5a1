"""A chat template filled in: text of a conversation, and what the template writes around an answer.

Rendered from a word that is known, because an answer of the data may hold special tokens itself:

<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n rayqd <|im_end|>\\n
                                 header                        end       tail, which begins with the end
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.messages import Json, Message
from rayqd.data.thought import common_prefix
from rayqd.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "rayqd"

# What a template may raise that is no error of Jinja's: it is code, and does what it likes with what the row holds.
_FAULTS = (TypeError, LookupError, AttributeError, ArithmeticError)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnForm:
    """What a template writes around an answer."""

    header: str  # before one that others follow, as far as a generation prompt has it too
    end: str  # after the last one, up to its end-of-turn token
    tail: str  # all that comes after the last one


def check_variables(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings) -> None:
    """Raise ConfigError where `data.chat_template_kwargs` has a variable that the chat template never reads."""
    template = chat.template or json.dumps(tokenizer.chat_template)
    words = sorted(set(re.findall(r"[A-Za-z_]\w*", template)))
    for name in json.loads(chat.kwargs):
        if name not in words:
            near = difflib.get_close_matches(name, words, n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out, or give another data.chat_template"
            raise ConfigError(f"data.chat_template_kwargs: {_whose(tokenizer, chat)} does not read {name}; {hint}")


def has_template(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings) -> bool:
    """Return whether there is a template, the tokenizer's own or another."""
    return chat.template is not None or tokenizer.chat_template is not None


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat: ChatSettings,
    *,
    tools: Sequence[Json] | None = None,
    add_generation_prompt: bool,
) -> str:
    """Return the text that the template makes of `messages`.

    Raises DataError with the template's own words where it refuses them, ModelError for templates that cannot be used.
    """
    try:
        return _apply(tokenizer, messages, chat, tools, add_generation_prompt)
    except TypeError as error:  # some templates join the arguments of a call to other text
        as_text = [_with_arguments_as_text(message) for message in messages]
        if as_text == list(messages):
            raise _refusal(error) from error
    return _apply_or_refuse(tokenizer, as_text, chat, tools, add_generation_prompt)


def _apply_or_refuse(*arguments: Any) -> str:
    try:
        return _apply(*arguments)
    except TypeError as error:
        raise _refusal(error) from error


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat: ChatSettings,
    tools: Sequence[Json] | None,
    add_generation_prompt: bool,
) -> str:
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    try:
        text = cast(Any, tokenizer).apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            chat_template=chat.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **chat.variables,
        )
    except TemplateSyntaxError as error:
        raise ModelError(f"{_whose(tokenizer, chat)} is no template: line {error.lineno}: {error}") from error
    except TemplateError as error:
        raise _refusal(error) from error
    except TypeError:
        raise
    except _FAULTS as error:
        raise _refusal(error) from error
    except ValueError as error:  # several templates, none of them the default
        raise ModelError(f"the chat templates of {name_of(tokenizer)} cannot be used: {error}") from error
    return cast(str, text)


def _refusal(error: Exception) -> DataError:
    return DataError(f"the chat template refuses it: {' '.join(str(error).split())}")


def _with_arguments_as_text(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_call_with_text(call) for call in calls]}


def _call_with_text(call: Json) -> Json:
    if not isinstance(call, dict):
        return call
    if isinstance(function := call.get("function"), dict):
        return {**call, "function": _call_with_text(function)}
    arguments = call.get("arguments")
    return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)} if isinstance(arguments, dict) else call


def find_turn_form(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings) -> TurnForm:
    """Return what the template writes around an answer. Raises ModelError where it takes no question and answer."""
    own = cast("str | dict[str, str] | None", tokenizer.chat_template)
    return _find_turn_form(tokenizer, chat, own if isinstance(own, str) else json.dumps(own))


@lru_cache(maxsize=16)
def _find_turn_form(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings, own_template: str) -> TurnForm:
    del own_template  # the tokenizer's present one: a part of the key
    question: Message = {"role": "user", "content": PROBE}
    answer: Message = {"role": "assistant", "content": PROBE}
    try:
        whole = render(tokenizer, [question, answer], chat, add_generation_prompt=False)
        if whole.count(PROBE) < 2:
            raise DataError("the chat template leaves the answer's text out")
    except DataError as error:
        raise ModelError(
            f"{name_of(tokenizer)} cannot be given a question and an answer: {error}; give it another chat template"
        ) from error
    tail = whole.rpartition(PROBE)[2]
    return TurnForm(header=_find_header(tokenizer, chat, question, answer), end=_find_end(tokenizer, tail), tail=tail)


def _find_header(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings, question: Message, answer: Message) -> str:
    """Return what stands before an answer that is not the last one, as far as a prompt ends with it; may be empty."""
    marked: Message = {**answer, "content": f"{PROBE}{PROBE}"}
    try:
        asked = render(tokenizer, [question], chat, add_generation_prompt=False)
        prompt = render(tokenizer, [question], chat, add_generation_prompt=True)
        whole = render(tokenizer, [question, marked, question], chat, add_generation_prompt=False)
    except DataError:
        return ""
    before = whole.partition(str(marked["content"]))[0]
    if not before.startswith(asked) or not prompt.startswith(asked):
        return ""
    generation_prompt = prompt.removeprefix(asked)
    return generation_prompt[: common_prefix(generation_prompt, before.removeprefix(asked))]


def _find_end(tokenizer: PreTrainedTokenizerBase, tail: str) -> str:
    """Return `tail` up to its first special token; one that has none gets the end-of-text token."""
    candidates = [(tail.find(token), -len(token), token) for token in special_tokens(tokenizer) if token in tail]
    if not candidates:
        return eos_token(tokenizer)
    start, _, token = min(candidates)
    return tail[: start + len(token)]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the texts of all special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def eos_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the end-of-text token; raises ModelError where the tokenizer has none."""
    if tokenizer.eos_token is None:
        raise ModelError(f"{name_of(tokenizer)} has no end-of-text token (eos_token), so a completion could not end")
    return cast(str, tokenizer.eos_token)


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what to call the tokenizer in an error."""
    return tokenizer.name_or_path or "the tokenizer"


def _whose(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings) -> str:
    return "data.chat_template" if chat.template is not None else f"the chat template of {name_of(tokenizer)}"
