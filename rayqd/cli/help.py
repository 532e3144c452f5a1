"""`rayqd help`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand


def _help(given: Given) -> int:
    from rayqd.cli import show_help  # which knows all commands, this one too

    return show_help(given.operands)


COMMAND = Command(
    name="help",
    text="explain a command, a section of settings, or one setting",
    run=_help,
    operands=(
        Operand(
            name="TOPIC",
            text="a command, a section, a setting, or a command and one of the others: help distill, help learner, "
            "help learner.lr; without it, the list of commands",
            least=0,
            most=2,
        ),
    ),
    takes_settings=False,
)
