"""Mistral's own kind of tokenizer, tekken.json, as a fast tokenizer with a chat template.

With mistral-common installed, transformers reads the file as a tokenizer whose conversations become tokens by code, and
never text. It also converts one, with the template that mistral-common writes for it: this is what is used, and what is
held against the other, as both must give the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayqd.errors import ModelError

TEKKEN = "tekken.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")  # of somebody's own
_PROBE = "rayqd: 1,234.5 ABcDE naïve 漢字 \U0001f600!\n\n  it's\tdone"


def convert_tekken(directory: Path, tokenizer: Any) -> Any:
    """Return the fast tokenizer of a checkpoint with a tekken.json, which transformers reads as `tokenizer`.

    Raises ModelError where this transformers cannot convert it, or the two give other tokens.
    """
    try:
        from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer
    except ImportError as error:
        raise _refusal(directory, "cannot be converted by this version of transformers") from error
    converted: Any = convert_tekken_tokenizer(str(directory / TEKKEN))
    converted.name_or_path = str(directory)
    if not _agree(directory, converted, tokenizer):
        raise _refusal(directory, "gives other tokens once transformers has converted it than mistral-common makes")
    return converted


def _agree(directory: Path, converted: Any, tokenizer: Any) -> bool:
    if converted.encode(_PROBE, add_special_tokens=False) != tokenizer.encode(_PROBE, add_special_tokens=False):
        return False
    if converted.chat_template is None or any((directory / name).is_file() for name in _TEMPLATES):
        return True
    question = [{"role": "user", "content": _PROBE}]
    ids, wanted = (each.apply_chat_template(question, return_dict=False) for each in (converted, tokenizer))
    return ids == wanted


def _refusal(directory: Path, why: str) -> ModelError:
    return ModelError(f"{directory}: {TEKKEN} {why}: give the model a tokenizer.json, and a data.chat_template")
