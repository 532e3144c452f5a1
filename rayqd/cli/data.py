"""`rayqd data`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError


def _data(given: Given) -> int:
    config = config_of(given.arguments)
    num_rows = _number(given.options.get("rows", "3"))
    quiet_driver()
    from rayqd.commands.data import look_at_data

    look_at_data(config, num_rows=num_rows, html=given.path("html"))
    return 0


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f'flag --rows: must be a number of rows, got "{text}"')
    return int(text)


COMMAND = Command(
    name="data",
    text="look at what a run would read, before it costs anything",
    run=_data,
    options=(
        Option(name="html", value="FILE", text="write the same as a page, rows in full"),
        Option(name="rows", value="N", text="how many rows to show as the model sees them; 3 unless given"),
    ),
    details="Counts, rows that are left out and why, lengths in tokens, the share that is trained on, epochs.\n"
    "Needs the model's tokenizer alone: neither its weights nor Ray nor a GPU.",
    first_settings=(
        "model.name",
        "data.source",
        "data.sources",
        "data.max_length",
        "data.min_room",
        "data.on_bad_row",
        "data.filter",
        "eval.source",
        "eval.num_rows",
        "learner.batch_size",
    ),
)
