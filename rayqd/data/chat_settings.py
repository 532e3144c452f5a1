"""How conversations become text: the same for data, rollouts, `rayqd generate` and `rayqd eval`.

One frozen object that can be pickled and hashed, so that rows can be tokenized in other processes and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from rayqd.config.sections import DataConfig
from rayqd.errors import ConfigError

_JINJA = ("{%", "{{", "{#")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    """What the text of a conversation depends on beside its messages, tools and tokenizer."""

    template: str | None = None  # in place of the tokenizer's own
    kwargs: str = "{}"  # JSON of an object: the template's variables
    train_on: Literal["last", "all"] = "last"  # which of the assistant's turns
    date: str | None = None  # ISO 8601: what a template that asks for the time is told; None: the time itself

    @property
    def variables(self) -> dict[str, JsonValue | Callable[[str], str]]:
        """Return what the template is given by name beside messages and tools."""
        variables: dict[str, JsonValue | Callable[[str], str]] = json.loads(self.kwargs) if self.kwargs != "{}" else {}
        if self.date is not None:
            variables["strftime_now"] = _strftime(self.date)
        return variables


@lru_cache(maxsize=16)  # every row asks
def _strftime(date: str) -> Callable[[str], str]:
    return datetime.fromisoformat(date).strftime


def chat_settings(data: DataConfig) -> ChatSettings:
    """Return the settings of `data`. Raises ConfigError for a file of a template that cannot be read."""
    return ChatSettings(
        template=None if data.chat_template is None else read_template(data.chat_template),
        kwargs=json.dumps(data.chat_template_kwargs, sort_keys=True),
        train_on=data.train_on,
        date=data.date,
    )


def read_template(template: str) -> str:
    """Return the text of a template, which is given itself or as the path of a file. Raises ConfigError."""
    if any(mark in template for mark in _JINJA):
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"data.chat_template={template}: {error.strerror}; give the path of a .jinja file, or its text"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.chat_template={template}: is not UTF-8 (byte {error.start})") from error
