"""Reads a TOML file; what is wrong with it is one line that names it."""

from __future__ import annotations

import re
import tomllib
from datetime import date, datetime, time
from pathlib import Path
from typing import TypeAlias

from rayqd.config.missing import describe_missing
from rayqd.errors import ConfigError

TomlValue: TypeAlias = "str | int | float | bool | datetime | date | time | list[TomlValue] | TomlTable"
TomlTable: TypeAlias = "dict[str, TomlValue]"


def read_toml(path: Path) -> TomlTable:
    """Read the tables of `path`. Raises ConfigError if it is missing, unreadable or no TOML."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(describe_missing(path, ".toml")) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text, which TOML must be") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_describe_syntax_error(path, str(error), text)) from None


def _describe_syntax_error(path: Path, message: str, text: str) -> str:
    position = re.search(r" \(at line (\d+), column \d+\)$", message)
    line = position[1] if position else str(max(1, len(text.splitlines())))
    message = re.sub(r" \(at (line \d+, column \d+|end of document)\)$", "", message)
    return f"{path}:{line}: is not TOML: {message[:1].lower()}{message[1:]}"
