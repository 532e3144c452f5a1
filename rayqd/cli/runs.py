"""`rayqd runs`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rayqd.cli.command import Command, words_alone
from rayqd.config import Config
from rayqd.config.switches import take_switches

RUNS_DETAILS = """\
DIR        where to look; without it, runs. Sweeps' runs, one level deeper, are listed too.
--json     the same for programs

running      a process has the run's directory locked
finished     its result is there
stopped      ended by Ctrl-C, SIGTERM or its sweep; the same command goes on from its last checkpoint
failed       ended by an error, which stands below the list
unfinished   no process has it and it left no word: it was killed, or its machine was"""


def _runs(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"json": ""})
    given = words_alone(others, "runs", at_most=1)
    from rayqd.commands.runs import find_runs, show_runs

    directory = Path(given[0]) if given else Config().runs_dir
    records = find_runs(directory) if given or directory.exists() else []  # before the first run there is no runs/
    show_runs(records, directory, as_json="json" in switches)
    return 0


COMMAND = Command(
    name="runs",
    text="list runs: how far they are, and what they came to",
    run=_runs,
    operand="[DIR] [--json]",
    details=RUNS_DETAILS,
    takes_settings=False,
)
