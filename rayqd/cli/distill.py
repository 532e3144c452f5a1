"""`rayqd distill`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.spans import process_start, span


def _distill(given: Given) -> int:
    config = config_of(given.arguments)
    quiet_driver()
    if "dry-run" in given.options:
        from rayqd.commands.dry_run import dry_run

        return dry_run(config)
    began = process_start()
    with span("import Ray"):
        from rayqd.commands.distill import distill

    distill(config, began=began)
    return 0


COMMAND = Command(
    name="distill",
    text="train a 4-bit student to behave like its teacher",
    run=_distill,
    options=(
        Option(
            name="dry-run",
            text="check all that can be checked without Ray, tell what each role would ask of which nodes, the "
            "tokens of a step and where the run would lie, and start and write nothing",
        ),
    ),
    details="The same command again resumes where its run directory ends.",
    when_stopped="the same command goes on from the last checkpoint",
    first_settings=(
        "name",
        "model.name",
        "data.source",
        "quant.format",
        "quant.group_size",
        "distill.lmbda",
        "distill.beta",
        "adapter.rank",
        "learner.steps",
        "learner.lr",
    ),
)
