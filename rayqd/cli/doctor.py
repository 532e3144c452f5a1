"""`rayqd doctor`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.model.import_transformers import import_transformers


def _doctor(given: Given) -> int:
    config = config_of(given.arguments)
    quiet_driver()
    if given.operands:
        from rayqd.runs.record import find_run

        run = find_run(given.operands[0], config.runs_dir)
        import_transformers()
        from rayqd.commands.doctor_run import examine_run

        return examine_run(run)
    from rayqd.commands.doctor import examine

    return examine(config)


COMMAND = Command(
    name="doctor",
    text="check this machine, or a run: what is wrong, and how to fix it",
    run=_doctor,
    operands=(
        Operand(
            name="RUN",
            text="a run's directory, or its name in runs; without it, this machine",
            example="runs/quickstart",
            least=0,
        ),
    ),
    details="""\
Of the machine: what it can run. Of a run: whether each step trained on what the plan draws for it, every sequence once,
written by weights new enough, from audit.jsonl. Of the settings it looks at runs_dir and storage. The exit code is 1 if
something is wrong.""",
)
