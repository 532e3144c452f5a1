"""`rayqd doctor`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.load import load_config


def _doctor(words: Sequence[str]) -> int:
    config = load_config(words)
    from rayqd.commands.doctor import examine

    return examine(config)


COMMAND = Command(
    name="doctor",
    text="check this machine: what it can run, and how to mend what it cannot",
    run=_doctor,
    details="Of the settings it looks at runs_dir alone. The exit code is 1 if something fails.",
)
