"""The words of a command line, sorted: @file.toml, --section.field VALUE, and the rest. Values stay text here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayqd.config.settings import settings
from rayqd.config.source_list import find_setting
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A setting on the command line."""

    key: str  # "quant.group_size", also when written --quant.group-size
    text: str  # the value as written; "true" or "false" where a switch stood alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The words of a command line, sorted."""

    files: tuple[Path, ...]
    flags: tuple[Flag, ...]
    words: tuple[str, ...]  # neither file nor flag


def read_arguments(parts: Sequence[str]) -> Arguments:
    """Sort `parts`. `@file` and `@ file`, `--key VALUE` and `--key=VALUE`, `--switch` and `--no-switch` are alike.

    Raises ConfigError at a flag without a value, and at `@` without a file.
    """
    files: list[Path] = []
    flags: list[Flag] = []
    words: list[str] = []
    rest = list(parts)
    while rest:
        part = rest.pop(0)
        if part.startswith("@"):
            files.append(_file(part, rest))
        elif part.startswith("--") and len(part) > 2:
            flags.append(_flag(part, rest))
        else:
            words.append(part)
    return Arguments(files=tuple(files), flags=tuple(flags), words=tuple(words))


def _file(part: str, rest: list[str]) -> Path:
    name = part[1:] or (rest.pop(0) if rest and not _is_option(rest[0]) else "")
    if not name:
        raise ConfigError("@ needs the name of a TOML file after it: @configs/quickstart.toml")
    return Path(name)


def _flag(part: str, rest: list[str]) -> Flag:
    name, has_value, text = part[2:].partition("=")
    key = name.replace("-", "_")
    if key not in settings() and key.removeprefix("no_") in settings():
        return _turn_off(part, key.removeprefix("no_"), has_value)
    if has_value:
        return Flag(key=key, text=text)
    if _is_switch(key) and not (rest and rest[0].lower() in ("true", "false")):
        return Flag(key=key, text="true")
    if rest and not _is_option(rest[0]):
        return Flag(key=key, text=rest.pop(0))
    if setting := find_setting(key):
        raise ConfigError(f"flag --{key}: needs a value: {setting.must_be}")
    return Flag(key=key, text="")


def _turn_off(part: str, key: str, has_value: str) -> Flag:
    if has_value or not _is_switch(key):
        raise ConfigError(f"flag {part}: must be --{key} VALUE; --no- turns off a switch and takes no value")
    return Flag(key=key, text="false")


def _is_switch(key: str) -> bool:
    return key in settings() and settings()[key].kind == "boolean"


def _is_option(part: str) -> bool:
    return part.startswith(("--", "@"))
