"""`rayqd watch`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rayqd.cli.command import Command, words_alone
from rayqd.config import Config
from rayqd.errors import ConfigError


def _watch(words: Sequence[str]) -> int:
    given = words_alone(words, "watch", at_most=1)
    if not given:
        raise ConfigError("rayqd watch needs a run: rayqd watch runs/quickstart")
    from rayqd.commands.watch import watch
    from rayqd.runs.record import find_run

    path = find_run(given[0], Config().runs_dir)
    try:
        return watch(path)
    except KeyboardInterrupt:
        print(f"rayqd: no longer watching {path}; what it does goes on", file=sys.stderr)
        return 130


COMMAND = Command(
    name="watch",
    text="follow a run from another terminal",
    run=_watch,
    operand="RUN",
    details="RUN is a run's directory, or its name in runs. Ends when the run does, with the run's exit code.\n"
    "Ctrl-C ends the watching alone.",
    takes_settings=False,
)
