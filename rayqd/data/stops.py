"""Where a completion may end: every end of turn that chat template, tokenizer or generation_config.json knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.messages import Json, Message
from rayqd.data.render import has_template, render, special_tokens
from rayqd.data.template import PLAIN, end_of_turn
from rayqd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMES = ("rayqdfirst", "rayqdsecond")
_VALUES = ("rayqdthis", "rayqdthat")


def end_token_ids(tokenizer: PreTrainedTokenizerBase, directory: Path, chat: ChatSettings = PLAIN) -> tuple[int, ...]:
    """Return the tokens that end a completion of the model in `directory`: the chat template's end of turn and end of a
    tool call, the tokenizer's end of text, and those that generation_config.json names, or else config.json."""
    from transformers import AutoConfig, GenerationConfig

    if (directory / "generation_config.json").is_file():
        named = GenerationConfig.from_pretrained(directory).eos_token_id
    else:
        config = AutoConfig.from_pretrained(directory)
        named = getattr(config, "eos_token_id", None)
        named = getattr(config.get_text_config(), "eos_token_id", None) if named is None else named
    ids: set[int] = {named} if isinstance(named, int) else set(named or ())
    for end in (end_of_turn(tokenizer, chat), *_ends_of_calls(tokenizer, chat)):
        ids.add(cast(Any, tokenizer)(end, add_special_tokens=False)["input_ids"][-1])
    if tokenizer.eos_token_id is not None:
        ids.add(cast(int, tokenizer.eos_token_id))
    return tuple(sorted(ids))


def _ends_of_calls(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings) -> list[str]:
    """Return the special token after an answer's last tool call that is not also between two; none without a place."""
    if not has_template(tokenizer, chat):
        return []
    calls = [_call(name, value) for name, value in zip(_NAMES, _VALUES, strict=True)]
    tails = [tail for number in (1, 2) if (tail := _tail_of_calls(tokenizer, chat, calls[:number])) is not None]
    if not tails:
        return []
    between = tails[-1][0] if len(tails) > 1 else ""
    after = tails[-1][1]
    found = [(after.find(token), -len(token), token) for token in special_tokens(tokenizer) if token in after]
    return [token for _, _, token in sorted(found) if token not in between][:1]


def _tail_of_calls(tokenizer: PreTrainedTokenizerBase, chat: ChatSettings, calls: list[Json]) -> tuple[str, str] | None:
    """Return the text between the arguments of the calls, and after the last ones; None where the template has none."""
    question: Message = {"role": "user", "content": "rayqd"}
    answer: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    try:
        text = render(tokenizer, [question, answer], chat, tools=[_TOOL], add_generation_prompt=False)
    except DataError:
        return None
    first, last = _VALUES[0], _VALUES[len(calls) - 1]
    if first not in text or last not in text:
        return None
    between = text.partition(first)[2].partition(last)[0] if first != last else ""
    return between, text.rpartition(last)[2]


def _call(name: str, value: str) -> Json:
    return {"id": "rayqd0001", "type": "function", "function": {"name": name, "arguments": {"rayqd": value}}}


_TOOL: Json = {
    "type": "function",
    "function": {
        "name": _NAMES[0],
        "description": "rayqd",
        "parameters": {"type": "object", "properties": {"rayqd": {"type": "string", "description": "rayqd"}}},
    },
}
