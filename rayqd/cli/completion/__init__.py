"""`rayqd completion`: a script that teaches a shell the commands and settings. It asks nothing of rayqd afterwards, so
that the Tab key answers at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rayqd.cli.command import Command, words_alone
from rayqd.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
COMPLETION_DETAILS = """\
Completes commands, @files, settings, and the values of those whose values can be listed.

bash   eval "$(rayqd completion bash)"              in ~/.bashrc
zsh    eval "$(rayqd completion zsh)"               in ~/.zshrc, after compinit
fish   rayqd completion fish | source               in ~/.config/fish/config.fish

The script knows the settings of the version that printed it."""


def _completion(words: Sequence[str]) -> int:
    shell, *_ = words_alone(words, "completion", at_most=1) or [""]
    if shell not in SHELLS:
        near = difflib.get_close_matches(shell, SHELLS, n=1)
        hint = f'got "{shell}"; did you mean {near[0]}?' if near else "such as rayqd completion bash"
        raise ConfigError(f"rayqd completion needs one of {', '.join(SHELLS)}: {hint}")
    from rayqd.cli import COMMANDS
    from rayqd.cli.completion.scripts import script

    print(script(shell, list(COMMANDS.values())), end="")
    return 0


COMMAND = Command(
    name="completion",
    text="print a script that completes rayqd's commands and settings in a shell",
    run=_completion,
    operand="bash|zsh|fish",
    details=COMPLETION_DETAILS,
    takes_settings=False,
)
