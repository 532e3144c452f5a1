"""`rayqd data`: what a run would read, looked at before it costs anything. No Ray, no GPU, no model: its tokenizer."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths, with_values
from rayqd.console.data import print_data
from rayqd.console.progress import Progress
from rayqd.console.say import say
from rayqd.data import load_run_data
from rayqd.data.summary import summarize_data
from rayqd.data.user_code import check_user_code
from rayqd.errors import ConfigError
from rayqd.files import write_text
from rayqd.model.load import context_length, load_tokenizer
from rayqd.model.source import tokenizer_directory
from rayqd.report.data import data_page


def look_at_data(
    config: Config, console: Console | None = None, *, num_rows: int = 3, html: Path | None = None
) -> None:
    """Print what a run of `config` would read, with `num_rows` rows as the model sees them; `html` is a page of it.

    Raises a RayqdError that says in one line what is wrong with the data.
    """
    console = console or Console()
    config = with_absolute_paths(config)
    check_user_code(config.data)
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"--html {html}: there is no directory {html.absolute().parent}")
    if config.data.date is None:  # for templates that print it
        config = with_values(config, {"data.date": datetime.datetime.now().isoformat(timespec="seconds")})
    directory = tokenizer_directory(config)
    tokenizer = load_tokenizer(directory)
    with Progress(console, num_steps=0) as progress:
        tell = partial(progress.bar, "tokenizing")
        training, heldout = load_run_data(tokenizer, config, context_length(directory), tell)
    data = summarize_data(tokenizer, directory, config, training, heldout, num_first=num_rows)
    say(console, f"data of {config.name}, in the tokens of {config.model.name}")
    shapes = [f"rows are read as {'; '.join(training.shapes)}"] if training.shapes else []
    for remark in dict.fromkeys((*shapes, *training.remarks, *heldout.remarks)):
        say(console, remark)
    learner = config.learner
    print_data(console, data, max_length=config.data.max_length, num_steps=learner.steps, batch_size=learner.batch_size)
    if html is not None:
        write_text(html, data_page(config, data, datetime.datetime.now().astimezone()))
        say(console, f"page      {html}")
