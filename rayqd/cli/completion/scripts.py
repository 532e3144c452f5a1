"""The table of words as a script for each shell."""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.cli.completion.bash import bash_script
from rayqd.cli.completion.fish import fish_script
from rayqd.cli.completion.words import command_words, setting_options
from rayqd.cli.completion.zsh import zsh_script


def script(shell: str, commands: Sequence[Command]) -> str:
    """What `eval` or `source` takes in `shell`: bash, zsh or fish."""
    writers = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
    return writers[shell](command_words(commands), setting_options())
