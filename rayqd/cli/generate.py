"""`rayqd generate`"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rayqd.cli.command import Command, settings_of_run
from rayqd.config.arguments import read_arguments
from rayqd.config.load import config_of, unexpected
from rayqd.config.switches import take_switches
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError

DETAILS = """\
--model WHO      teacher (unless given), student (the export of the run that the settings name), a run's directory, or
                 any model: a directory or a hub id; with a run's directory, settings start from the run's
--out FILE       a .jsonl file, without it DATA-WHO.jsonl here; FILE.json beside it tells how it was made
--num-rows N     answer the first N prompts of the shuffled data; without it, all
The answers to the prompts of data.source, as a data set that data.source reads. rollout.* says how they are sampled
(rollout.max_new_tokens cuts them), rollout.num_workers over how many engines they are spread.
The same command again goes on where FILE ends, and a larger N adds to it."""


def _generate(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"model": "WHO", "out": "FILE", "num-rows": "N"})
    arguments = read_arguments(others)
    if arguments.words:
        raise ConfigError(unexpected(arguments.words[0]))
    model = switches.get("model", "teacher")
    config = config_of(arguments, before=settings_of_run(Path(model)) if Path(model).is_dir() else ())
    num_rows = _number(switches["num-rows"]) if "num-rows" in switches else None
    quiet_driver()
    from rayqd.commands.generate import generate

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a job is an orderly end, as Ctrl-C is
    out = Path(switches["out"]) if "out" in switches else None
    try:
        generate(config, model=model, out=out, num_rows=num_rows, command=shlex.join(["rayqd", "generate", *words]))
    except KeyboardInterrupt:
        print("rayqd: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130
    return 0


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"flag --num-rows={text}: must be a whole number of at least 1")
    return int(text)


COMMAND = Command(
    name="generate",
    text="write a data set: what the teacher, or another model, answers to the data's prompts",
    run=_generate,
    operand="[--model WHO] [--out FILE] [--num-rows N]",
    details=DETAILS,
)
