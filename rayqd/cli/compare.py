"""`rayqd compare`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.cli.options import Option
from rayqd.config import Config


def _compare(given: Given) -> int:
    from rayqd.commands.compare import compare

    compare(given.operands, Config().runs_dir, as_json="json" in given.options)
    return 0


COMMAND = Command(
    name="compare",
    text="put the results of runs side by side, with the settings that differ",
    run=_compare,
    operands=(
        Operand(
            name="RUN",
            needs="two runs or more",
            example="runs/a runs/b",
            text="a run's directory, or its name in runs",
            least=2,
            most=None,
        ),
    ),
    options=(Option(name="json", text="the same for programs"),),
    takes_settings=False,
)
