"""`rayqd distill`"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.load import load_config
from rayqd.console.quiet import quiet_driver


def _distill(words: Sequence[str]) -> int:
    config = load_config(words)
    quiet_driver()
    from rayqd.commands.distill import distill

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a job is an orderly end, as Ctrl-C is
    try:
        distill(config)
    except KeyboardInterrupt:
        print("rayqd: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


COMMAND = Command(
    name="distill",
    text="train a 4-bit student to behave like its teacher",
    run=_distill,
    details="The same command again resumes where its run directory ends.",
)
