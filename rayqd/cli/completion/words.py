"""What can stand on rayqd's command line, as the shells' scripts need it: one table for all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayqd.cli.command import Command
from rayqd.cli.usage import Word, usage_of
from rayqd.config.settings import Setting, settings
from rayqd.config.sweep.fields import sweep_settings

FILES, DIRECTORIES = "FILES", "DIRECTORIES"
_MAX_TEXT = 72  # characters of a description


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What may stand in one place: words that can be listed, or paths, or anything (neither)."""

    words: tuple[str, ...] = ()
    paths: str = ""  # FILES, DIRECTORIES, or none


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A flag with its dashes; `value` is None where it takes none."""

    flag: str
    text: str
    value: Value | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandWords:
    name: str
    text: str
    switches: tuple[Option, ...]
    word: Value  # of what stands without a flag
    takes_settings: bool


def command_words(commands: Sequence[Command]) -> list[CommandWords]:
    found: list[CommandWords] = []
    for command in commands:
        usage = usage_of(command)
        switches = [_switch(name, word, command.details) for name, word in usage.switches.items()]
        if command.name == "sweep":  # which has a section of settings of its own
            switches += [_option(setting) for setting in sweep_settings().values()]
        switches.append(Option(flag="--help", text="what the command does", value=None))
        found.append(
            CommandWords(
                name=command.name,
                text=command.text,
                switches=tuple(switches),
                word=_value(usage.words[0]) if usage.words else Value(),
                takes_settings=command.takes_settings,
            )
        )
    return found


def setting_options() -> list[Option]:
    """A flag for each setting, and the one that turns off where it is a switch."""
    options: list[Option] = []
    for setting in settings().values():
        options.append(_option(setting))
        if setting.kind == "boolean":
            options.append(Option(flag=f"--no-{setting.key}", text=f"off: {options[-1].text}", value=None))
    return options


def _option(setting: Setting) -> Option:
    return Option(flag=f"--{setting.key}", text=_first_sentence(setting.text), value=_setting_value(setting))


def _switch(name: str, word: Word, details: str) -> Option:
    """Its text is what stands beside it in the command's details: `--out DIR     without it, RUN_DIR/export`."""
    found = re.search(rf"^--{name}\b.*?  +(.*)$", details, re.MULTILINE)
    text = _first_sentence(found[1]) if found else word.name
    return Option(flag=f"--{name}", text=text, value=_value(word) if word.name else None)


def _value(word: Word) -> Value:
    return Value(words=tuple(word.choices), paths=DIRECTORIES if word.is_directory else FILES if word.is_file else "")


def _setting_value(setting: Setting) -> Value:
    if setting.choices:
        return Value(words=setting.choices)
    if setting.kind == "boolean":
        return Value(words=("true", "false"))
    if setting.kind == "path":
        return Value(paths=DIRECTORIES)
    # Names of models and data sets may be paths.
    return Value(paths=FILES if setting.kind == "string" else "")


def _first_sentence(text: str) -> str:
    sentence = " ".join(text.split()).split(". ")[0].split("; ")[0].rstrip(".")
    return sentence if len(sentence) <= _MAX_TEXT else f"{sentence[: _MAX_TEXT - 1]}…"


def filled(template: str, parts: Mapping[str, str]) -> str:
    """`template` with the parts in the places of their %NAMES%."""
    for name, text in parts.items():
        template = template.replace(f"%{name}%", text)
    return template
