"""`rayqd eval`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand, existing_run, settings_of_run
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError
from rayqd.runs.paths import EXPORT
from rayqd.spans import process_start

_OF_TRAINING = ("checkpoint.best", "eval.tasks_every", "eval.where")  # which go with the run's own eval.tasks


def _evaluate(given: Given) -> int:
    if "as-run" in given.options:
        return _measure_as_run(given)
    path = existing_run(given.operands[0], parts=(EXPORT,))
    config = config_of(given.arguments, before=settings_of_run(path), unread=_OF_TRAINING)
    quiet_driver()
    from rayqd.commands.evaluate import evaluate

    evaluate(path, config)
    return 0


def _measure_as_run(given: Given) -> int:
    config = config_of(given.arguments, unread=_OF_TRAINING)
    if "name" not in config.model_fields_set:
        raise ConfigError("flag --as-run: needs --name NAME, by which the run is known")
    quiet_driver()
    began = process_start()
    from rayqd.commands.measured_run import measure_as_run

    measure_as_run(given.operands[0], config, began=began)
    return 0


COMMAND = Command(
    name="eval",
    text="measure a run, a checkpoint or a model against its teacher",
    run=_evaluate,
    operands=(
        Operand(
            name="RUN_OR_CHECKPOINT_DIR",
            needs="a run's directory or one of its checkpoints",
            example="runs/quickstart",
        ),
    ),
    options=(
        Option(
            name="as-run",
            text="measure a model that was made elsewhere, a directory or a name on the hub, as a run of its own in "
            "RUNS_DIR/NAME, which rayqd runs and rayqd compare know; its settings are those given",
        ),
    ),
    details="""\
Settings start from the run's own config.toml. A run in its storage: rayqd eval s3://bucket/folder/name
Benchmarks of lm-evaluation-harness: rayqd eval runs/quickstart --eval.tasks gsm8k,arc_easy""",
)
