"""`rayqd doctor`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.config.load import config_of


def _doctor(given: Given) -> int:
    config = config_of(given.arguments)
    from rayqd.commands.doctor import examine

    return examine(config)


COMMAND = Command(
    name="doctor",
    text="check this machine: what it can run, and how to fix what it cannot",
    run=_doctor,
    details="Of the settings it looks at runs_dir and storage. The exit code is 1 if something fails.",
)
