"""What `rayqd help`, `rayqd COMMAND --help` and `rayqd COMMAND --help TOPIC` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rayqd.cli.command import Command
from rayqd.config.help import brief_help, group_help, setting_help, settings_help
from rayqd.config.hints import hint_for_setting, normalize_key
from rayqd.config.other_tools import SETTINGS
from rayqd.config.settings import groups, nearest_settings, settings
from rayqd.config.source_list import SOURCES, find_setting, is_field, source_group
from rayqd.config.sweep.fields import sweep_group, sweep_settings
from rayqd.errors import ConfigError

_WIDTH = 118  # characters

_HEADER = """\
usage: rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]

Distils a language model into its own INT4 self.
"""

_EXAMPLES = """\
Examples:
  rayqd doctor                                    what this machine can run
  rayqd distill @configs/quickstart.toml          a real run, small enough for two CPU cores
  rayqd distill @a.toml @b.toml --learner.lr 1e-4 b.toml wins over a.toml, the flag over both
  rayqd data @a.toml                              what a run would read, and rows as the model sees them
  rayqd quantize @a.toml --quant.method awq       a 4-bit model without training, in one process
  rayqd generate @a.toml --model teacher          the teacher's answers to the data's prompts, as a data set
  rayqd config @a.toml --quant.group-size 64      the settings that this comes to, as TOML
  rayqd watch quickstart                          a run, seen from another terminal
  rayqd compare quickstart other                  two runs side by side
  rayqd eval runs/quickstart                      how far the run's student is from its teacher
  rayqd export runs/quickstart --verify           whether its export is, bit for bit, what was trained
  rayqd cluster validate cluster.yaml @a.toml     where on a cluster the run's roles would land

`rayqd COMMAND --help` lists every setting; `--help learner` those of a section, `--help learner.lr` one."""

_SYNTAX = """\
Settings come from TOML files and from flags; later files win over earlier ones, flags over files.
--section.field VALUE and --section.field=VALUE are alike, and so are group-size and group_size.
Lists: A,B or '["A", "B"]'. Settings that may be unset take "none". A switch alone turns on, --no- turns off."""


def main_help(commands: Iterable[Command]) -> str:
    """Return the list of all commands, with examples."""
    lines = [f"  {command.name:12}{command.text}" for command in commands]
    return "\n".join([_HEADER, "Commands:", *lines, "", _EXAMPLES])


def command_help(command: Command) -> str:
    """Return how a command is written, and every setting where it takes settings, those that matter most first."""
    parts = [f"usage: {command.usage}", command.text]
    parts += [_first_settings(command), "\n".join(_table(dict(_rows(command)))), command.details]
    if command.takes_settings:
        parts.append(f"{_SYNTAX}\n{settings_help()}")
    return "\n\n".join(part for part in parts if part)


def topic_help(topic: str, command: Command | None = None, *, required: bool = False) -> str | None:
    """Return the help of a section, a setting or an option of `command`; None, or if `required` an error, for others.

    The last part of a setting's name will do, and so will another tool's name for it.
    """
    key = normalize_key(topic).removesuffix(".")
    option = next((o for o in command.options if o.name.replace("-", "_") == key), None) if command else None
    if option:
        return "\n".join(_table({option.usage: option.text}))
    known = settings() | sweep_settings()
    group = next((group for group in (*groups(), sweep_group()) if (group.name or "run") == key), None)
    if group:
        return "\n".join(group_help(group)).lstrip("\n")
    if key == SOURCES:
        return "\n".join([*setting_help(known[key]), *group_help(source_group())])
    if is_field(key) and (field := find_setting(key)):
        return "\n".join(setting_help(field))
    counterpart = SETTINGS.get(key)
    found = [key] if key in known else [name for name in known if name.rpartition(".")[2] == key]
    if not found and counterpart:
        return "\n".join([f"{topic}: {counterpart}", *_entries(counterpart.settings)])
    if not found and required:
        near = nearest_settings(key)
        hint = f"did you mean {' or '.join(near)}?" if near else hint_for_setting(key)
        raise ConfigError(f'there is no help on "{topic}"; {hint}')
    return "\n".join(_entries(found)) or None


def _entries(keys: Iterable[str]) -> Iterator[str]:
    known = settings() | sweep_settings()
    return (line for key in keys for line in setting_help(known[key]))


def _first_settings(command: Command) -> str:
    if not command.first_settings:
        return ""
    lines = [line for key in command.first_settings for line in brief_help(settings()[key], _WIDTH)]
    return "\n".join(["The settings that matter most, with their defaults (all others are below):", "", *lines])


def _rows(command: Command) -> Iterator[tuple[str, str]]:
    for operand in command.operands:
        if operand.text:
            yield operand.name, operand.text
        yield from operand.choices.items()
    for option in command.options:
        yield option.usage, option.text


def _table(rows: dict[str, str]) -> Iterator[str]:
    indent = " " * (max(map(len, rows), default=0) + 3)
    for name, text in rows.items():
        first = name.ljust(len(indent))
        yield from textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
