"""What somebody most likely meant who wrote what rayqd does not know: a setting, a value, a word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from rayqd.config.other_tools import SETTINGS, VALUES
from rayqd.config.settings import Setting, nearest_settings, section_names, settings, settings_in

_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def normalize_key(text: str) -> str:
    """Return `text` as settings are written: `--learningRate` and `learning-rate` are learning_rate."""
    return _CAPITAL.sub("_", text.lstrip("-–—+")).replace("-", "_").lower()


def hint_for_setting(key: str) -> str:
    """Complete "unknown setting learning_rate; "."""
    key = normalize_key(key)
    section, _, leaf = key.rpartition(".")
    if key in settings():
        return f"did you mean {key}?"
    if key.partition(".")[0] == "sweep":
        return "the section [sweep] is for `rayqd sweep`"
    if key.partition(".")[0] == "compare":
        return "the section [compare] is for `rayqd compare`"
    if counterpart := SETTINGS.get(leaf):
        return str(counterpart)
    if near := nearest_settings(key):
        return f"did you mean {' or '.join(near)}?"
    section = key.partition(".")[0]
    if section in section_names():
        return f"there are {', '.join(settings_in(section))}"
    if sections := difflib.get_close_matches(section, section_names(), n=1):
        return f"did you mean section {sections[0]}?"
    near_foreign = difflib.get_close_matches(leaf, SETTINGS, n=1, cutoff=0.8)
    return str(SETTINGS[near_foreign[0]]) if near_foreign else "`rayqd distill --help` lists every setting"


def nearest_choice(value: object, setting: Setting) -> str | None:
    """Return the choice that `value` most likely is, by another tool's name or misspelt; None if it is like none."""
    text = str(value).lower()
    known = VALUES.get(setting.key, {}).get(text)
    return known if known in setting.choices else nearest_word(text, setting.choices)


def nearest_word(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of `words` that `word` most likely is, whatever its case; None if none is like it."""
    by_lower = {other.lower(): other for other in words}
    return next((by_lower[near] for near in difflib.get_close_matches(word.lower(), by_lower, 1, cutoff)), None)


def describe_unexpected(word: str) -> str:
    """Say that an argument is neither a file nor a flag, and how either is written."""
    unexpected = f'unexpected argument "{word}"'
    if word.endswith(".toml"):
        return f"{unexpected}; a file of settings is given as @{word}"
    name, equals, _ = word.partition("=")
    key = normalize_key(name)
    if equals or name != key:
        if key in settings():
            return f"{unexpected}; did you mean --{key}{word[len(name) :]}?"
        if (leaf := key.rpartition(".")[2]) in SETTINGS or leaf in _leaves():
            return f"{unexpected}; {hint_for_setting(key)}"
    if word.startswith(("-", "–", "—")):
        return f"{unexpected}; settings are given as --section.field VALUE"
    return f"{unexpected}; give settings as @file.toml or --section.field VALUE"


def _leaves() -> set[str]:
    return {key.rpartition(".")[2] for key in settings()}
