"""`rayqd watch`"""

from __future__ import annotations

import sys

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.config import Config


def _watch(given: Given) -> int:
    from rayqd.commands.watch import watch
    from rayqd.runs.record import find_run

    path = find_run(given.operands[0], Config().runs_dir)
    try:
        return watch(path)
    except KeyboardInterrupt:
        print(f"rayqd: no longer watching {path}; what it does goes on", file=sys.stderr)
        return 130


COMMAND = Command(
    name="watch",
    text="follow a run from another terminal",
    run=_watch,
    operands=(
        Operand(name="RUN", needs="a run", example="runs/quickstart", text="a run's directory, or its name in runs"),
    ),
    details="Ends when the run does, with the run's exit code. Ctrl-C ends the watching alone.",
    takes_settings=False,
)
