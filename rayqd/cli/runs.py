"""`rayqd runs`"""

from __future__ import annotations

from pathlib import Path

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.cli.options import Option
from rayqd.config import Config


def _runs(given: Given) -> int:
    from rayqd.commands.runs import find_runs, show_runs

    directory = Path(given.operands[0]) if given.operands else Config().runs_dir
    is_there = bool(given.operands) or directory.exists()  # before the first run there is no runs/
    show_runs(find_runs(directory) if is_there else [], directory, as_json="json" in given.options)
    return 0


COMMAND = Command(
    name="runs",
    text="list runs: how far they are, and what they came to",
    run=_runs,
    operands=(
        Operand(
            name="DIR",
            text="where to look; without it, runs. Sweeps' runs, one level deeper, are listed too.",
            least=0,
        ),
    ),
    options=(Option(name="json", text="the same for programs"),),
    details="""\
running      a process has the run's directory locked
finished     its result is there
stopped      ended by Ctrl-C, SIGTERM or its sweep; the same command goes on from its last checkpoint
failed       ended by an error, which stands below the list
unfinished   no process has it and it left no word: it was killed, or its machine was""",
    takes_settings=False,
)
