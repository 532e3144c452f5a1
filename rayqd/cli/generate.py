"""`rayqd generate`"""

from __future__ import annotations

import shlex
from pathlib import Path

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import settings_of_run
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError


def _generate(given: Given) -> int:
    model = given.options.get("model", "teacher")
    config = config_of(given.arguments, before=settings_of_run(Path(model)) if Path(model).is_dir() else ())
    num_rows = _number(given.options["num-rows"]) if "num-rows" in given.options else None
    quiet_driver()
    from rayqd.commands.generate import generate

    command = shlex.join(["rayqd", "generate", *given.words])
    generate(config, model=model, out=given.path("out"), num_rows=num_rows, command=command)
    return 0


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"flag --num-rows={text}: must be a whole number of at least 1")
    return int(text)


COMMAND = Command(
    name="generate",
    text="write a data set: what the teacher, or another model, answers to the data's prompts",
    run=_generate,
    options=(
        Option(
            name="model",
            value="WHO",
            text="teacher (unless given), student (the export of the run that the settings name), a run's directory, "
            "or any model: a directory or a hub id; with a run's directory, settings start from the run's",
        ),
        Option(
            name="out",
            value="FILE",
            text="a .jsonl file, without it DATA-WHO.jsonl here; FILE.json beside it tells how it was made",
        ),
        Option(
            name="num-rows",
            value="N",
            text="answer the first N prompts of the shuffled data; without it, all",
        ),
    ),
    details="""\
The answers to the prompts of data.source, as a data set that data.source reads. rollout.* says how they are sampled
(rollout.max_new_tokens cuts them), rollout.num_workers over how many engines they are spread.
The same command again goes on where FILE ends, and a larger N adds to it. Of several data.sources each gets a file of
its own, NAME-WHO.jsonl, and N prompts of each are answered.""",
    when_stopped="the same command goes on where this one ended",
    first_settings=(
        "model.name",
        "teacher.name",
        "data.source",
        "data.split",
        "data.max_length",
        "rollout.max_new_tokens",
        "rollout.temperature",
        "rollout.num_workers",
        "rollout.max_concurrent",
        "seed",
    ),
)
