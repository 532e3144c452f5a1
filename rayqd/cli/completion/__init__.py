"""`rayqd completion`: a script that teaches a shell the commands and settings. It asks nothing of rayqd afterwards, so
that the Tab key answers at once."""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand

_SHELLS = {
    "bash": 'eval "$(rayqd completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(rayqd completion zsh)"   in ~/.zshrc, after compinit',
    "fish": "rayqd completion fish | source   in ~/.config/fish/config.fish",
}


def _completion(given: Given) -> int:
    from rayqd.cli import COMMANDS
    from rayqd.cli.completion.scripts import script

    print(script(given.operands[0], list(COMMANDS.values())), end="")
    return 0


COMMAND = Command(
    name="completion",
    text="print a script that completes rayqd's commands and settings in a shell",
    run=_completion,
    operands=(Operand(name="|".join(_SHELLS), needs=f"one of {', '.join(_SHELLS)}", example="bash", choices=_SHELLS),),
    details="""\
Completes commands, @files, settings, and the values of those whose values can be listed.
The script knows the settings of the version that printed it.""",
    takes_settings=False,
)
