"""`rayqd models`"""

from __future__ import annotations

from pathlib import Path

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.cli.options import Option
from rayqd.console.quiet import quiet_driver

_ROWS = "runs/models"


def _models(given: Given) -> int:
    quiet_driver()
    from rayqd.commands.models import models

    return models(given.operands, given.path("rows") or Path(_ROWS), given.path("write"))


COMMAND = Command(
    name="models",
    text="try what architectures come to, on tiny random models: exact, how fast, or refused",
    run=_models,
    operands=(
        Operand(
            name="MODEL",
            text="a model_type of transformers, or a directory with a config.json; none: all that are not tried yet",
            least=0,
            most=None,
        ),
    ),
    options=(
        Option(name="write", value="FILE", text="the table as a page of Markdown"),
        Option(
            name="rows", value="DIR", text=f"where results are kept, so that it goes on where it was stopped; {_ROWS}"
        ),
    ),
    details="Each is held against transformers' own computation (docs/models.md). The exit code is 1 if one is wrong.",
    takes_settings=False,
    when_stopped="the same command goes on with the next one",
)
