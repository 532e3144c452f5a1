"""`rayqd eval`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command, operand, settings_of_run
from rayqd.config.arguments import read_arguments
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver


def _evaluate(words: Sequence[str]) -> int:
    arguments = read_arguments(words)
    path = operand(arguments, "eval", "a run's directory or one of its checkpoints", parts=("export",))
    config = config_of(arguments, before=settings_of_run(path))
    quiet_driver()
    from rayqd.commands.evaluate import evaluate

    evaluate(path, config)
    return 0


COMMAND = Command(
    name="eval",
    text="measure a run, a checkpoint or a model against its teacher",
    run=_evaluate,
    operand="RUN_OR_CHECKPOINT_DIR",
    details="""\
Settings start from the run's own config.toml. A run in its storage: rayqd eval s3://bucket/folder/name
Benchmarks of lm-evaluation-harness: rayqd eval runs/quickstart --eval.tasks gsm8k,arc_easy""",
)
