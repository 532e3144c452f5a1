"""Chat templates of eight families of models, written anew in templates/, and conversations to fill them with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.data.conftest import make_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
DATE = "2026-01-31T12:00:00"

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Hi"), assistant("Hello")],
    "three turns": [user("a?"), assistant("A."), user("b?"), assistant("B."), user("c?"), assistant("C.")],
    "system": [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello")],
    "call": [user("2+2?"), assistant(None, tool_calls=[CALL])],
    "result": [
        user("2+2?"),
        assistant(None, tool_calls=[CALL]),
        {"role": "tool", "name": "add", "content": "4"},
        assistant("It is 4."),
    ],
}


@dataclass(frozen=True)
class Family:
    """What a template ends an answer with, and a call; the conversations that it refuses."""

    special: tuple[str, ...]
    end: str
    end_of_call: str = ""
    refuses: tuple[str, ...] = ()
    eos: str = "<|endoftext|>"


FAMILIES = {
    "qwen25": Family(("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>"),
    "qwen3": Family(("<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>"),
    "llama3": Family(
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"), "<|eot_id|>", "<|eom_id|>"
    ),
    "mistral": Family(
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "</s>"),
        "</s>",
        "</s>",
        eos="</s>",
    ),
    "gemma": Family(("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>", refuses=("system", "call", "result")),
    "phi3": Family(("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|end|>", refuses=("call", "result")),
    "deepseek_r1": Family(
        ("<|User|>", "<|Assistant|>", "<|end_of_sentence|>"), "<|end_of_sentence|>", refuses=("call", "result")
    ),
    "harmony": Family(
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"), "<|return|>", "<|call|>"
    ),
}


def tokenizer_of(name: str) -> Any:
    family = FAMILIES[name]
    special = list(dict.fromkeys([*family.special, "<|bos|>", family.eos]))
    template = (TEMPLATES / f"{name}.jinja").read_text()
    return make_tokenizer(template, eos_token=family.eos, bos_token="<|bos|>", additional_special_tokens=special)


def tools_of(conversation: str) -> list[dict[str, Any]] | None:
    return [json.loads(json.dumps(TOOL))] if conversation in ("call", "result") else None
