"""Flags that belong to one command alone: `--verify`, `--out DIR`. Settings always have a section, or no dash."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayqd.config.hints import normalize_key
from rayqd.config.other_tools import SETTINGS
from rayqd.config.settings import settings
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A flag as a command declares it."""

    name: str  # "num-rows"
    text: str  # its help
    value: str = ""  # what stands after it, as the help calls it: "DIR"; "" where nothing does

    @property
    def usage(self) -> str:
        """How it is written: `--out DIR`."""
        return f"--{self.name} {self.value}".rstrip()


def take_options(words: Sequence[str], options: Iterable[Option]) -> tuple[dict[str, str], list[str]]:
    """Return the `options` among `words` with their values, "true" where they take none, and the words that remain.

    Raises ConfigError at a value that is missing or too many, and at a name close to an option's.
    """
    declared = {option.name: option for option in options}
    values: dict[str, str] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if word.startswith("--") and name in declared:
            values[name] = _value(word, declared[name], rest)
        else:
            _check_not_misspelt(word, name, declared)
            others.append(word)
    return values, others


def _value(word: str, option: Option, rest: list[str]) -> str:
    """Return the value in `word`, `--out=DIR`, or else take the first of the `rest`."""
    _, has_value, text = word.partition("=")
    if not option.value:
        if has_value:
            raise ConfigError(f"flag {word}: --{option.name} takes no value")
        return "true"
    if not has_value and rest and not rest[0].startswith(("--", "@")):
        text = rest.pop(0)
    if not text:
        raise ConfigError(f"flag --{option.name}: needs a value: {option.usage}")
    return text


def _check_not_misspelt(word: str, name: str, declared: Iterable[str]) -> None:
    key = normalize_key(name)
    if not word.startswith("-") or "." in key or key in settings() or key.removeprefix("no_") in settings():
        return
    if word == f"-{name.lstrip('-')}" and name.lstrip("-") in declared:
        raise ConfigError(f"unknown flag {word}; did you mean --{name.lstrip('-')}?")
    near = difflib.get_close_matches(name, [*declared, *(key for key in settings() if "." not in key), *SETTINGS], n=1)
    if near and near[0] in declared:
        raise ConfigError(f"unknown flag {word.partition('=')[0]}; did you mean --{near[0]}?")
