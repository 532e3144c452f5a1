"""`rayqd --help` and `rayqd COMMAND --help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rayqd.cli.command import Command
from rayqd.config.help import settings_help

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
  rayqd quantize @a.toml --quant.method awq       a 4-bit model without training, in one process
  rayqd generate @a.toml --model teacher          the teacher's answers to the data's prompts, as a data set
  rayqd config @a.toml --quant.group-size 64      the settings that this comes to, as TOML
  rayqd watch quickstart                          a run, seen from another terminal
  rayqd compare quickstart other                  two runs side by side
  rayqd eval runs/quickstart                      how far the run's student is from its teacher
  rayqd export runs/quickstart --verify           whether its export is, bit for bit, what was trained
  rayqd cluster validate cluster.yaml @a.toml     where on a cluster the run's roles would land

`rayqd COMMAND --help` lists every setting."""

_SYNTAX = """\
Settings come from TOML files and from flags; later files win over earlier ones, flags over files.
--section.field VALUE and --section.field=VALUE are alike, and so are group-size and group_size.
Lists: A,B or '["A", "B"]'. Settings that may be unset take "none". A switch alone turns on, --no- turns off."""


def main_help(commands: Iterable[Command]) -> str:
    """Return the list of all commands, with examples."""
    lines = [f"  {command.name:12}{command.text}" for command in commands]
    return "\n".join([_HEADER, "Commands:", *lines, "", _EXAMPLES])


def command_help(command: Command) -> str:
    """Return how a command is written, and every setting where it takes settings."""
    parts = [f"usage: {command.usage}", command.text, "\n".join(_table(dict(_rows(command)))), command.details]
    if command.takes_settings:
        parts.append(f"{_SYNTAX}\n{settings_help()}")
    return "\n\n".join(part for part in parts if part)


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
