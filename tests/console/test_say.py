"""Whoever reads what is printed may go away: that stops a run as Ctrl-C does, and nobody hears of it twice."""

from __future__ import annotations

import errno
import io
import subprocess
import sys

import pytest
from rich.console import Console

from rayqd.console.say import say

SAYS = """
import sys
from rich.console import Console
from rayqd.console.say import say
console = Console()
try:
    while True:
        say(console, "step 1/1000")
except KeyboardInterrupt:
    say(console, "stopped after step 1, of which a checkpoint is kept")
    sys.exit(130)
"""


def test_a_reader_that_goes_away_stops_the_process_once_and_in_order() -> None:
    """As `rayqd distill | head -1`: no complaint of Python's own when it ends, and its own exit code."""
    process = subprocess.Popen([sys.executable, "-c", SAYS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "step 1/1000\n"
    process.stdout.close()
    complaints = process.stderr.read()
    assert (process.wait(timeout=60), complaints) == (130, "")


def test_a_full_disk_behind_it_stops_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    say(Console(file=Full()), "step 1/1000")


def test_a_terminal_that_is_gone_stops_it() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    console = Console(file=Gone())
    with pytest.raises(KeyboardInterrupt):
        say(console, "step 1/1000")
    say(console, "step 2/1000")
