"""Switches that belong to one command alone: `--verify`, `--out DIR`. Settings always have a section, or no dash."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from rayqd.config.settings import settings
from rayqd.errors import ConfigError


def take_switches(words: Sequence[str], takes: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The switches among `words` with their values, and the words that remain.

    `takes` says of each switch what stands after it ("DIR"), or "" where nothing does; those have the value "true".
    Raises ConfigError at a value that is missing or too many, and at a name close to a switch's.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, has_value, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in takes:
            _check_not_misspelt(word, name, takes)
            others.append(word)
        elif not takes[name]:
            if has_value:
                raise ConfigError(f"flag {word}: --{name} takes no value")
            found[name] = "true"
        else:
            if not has_value:
                text = rest.pop(0) if rest and not rest[0].startswith(("--", "@")) else ""
            if not text:
                raise ConfigError(f"flag --{name}: needs a value: --{name} {takes[name]}")
            found[name] = text
    return found, others


def _check_not_misspelt(word: str, name: str, takes: Mapping[str, str]) -> None:
    key = name.replace("-", "_")
    if not word.startswith("--") or "." in name or key in settings() or key.removeprefix("no_") in settings():
        return
    near = difflib.get_close_matches(name, [*takes, *(key for key in settings() if "." not in key)], n=1)
    if near and near[0] in takes:
        raise ConfigError(f"unknown flag --{name}; did you mean --{near[0]}?")
