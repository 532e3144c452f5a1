"""The settings that a run decides once, before anything is written, and keeps when it goes on.

The dtype, the text of the chat template, and the date that a template prints.
"""

from __future__ import annotations

import contextlib
import tomllib
from datetime import datetime
from pathlib import Path

from rayqd.config import Config
from rayqd.config.resolved import with_values
from rayqd.data.chat_settings import read_template
from rayqd.driver.dtype import with_concrete_dtype
from rayqd.errors import RayqdError
from rayqd.model.source import template_files
from rayqd.runs.paths import CONFIG
from rayqd.runs.storage.stored_run import StoredRun

_KEY = "data.date"
_ASKS = "strftime_now"  # the function by which a template asks for the time


def with_frozen_settings(config: Config, run_dir: Path | None = None) -> Config:
    """Return `config` with a dtype in place of "auto", a chat template's text, and a date where a template prints it.

    Dtype and date are those of an earlier start, which are in the config.toml of `run_dir` or in the run's storage, and
    else of now. Raises ConfigError for a template that cannot be read.
    """
    config = with_concrete_dtype(config, run_dir)
    if config.data.chat_template is not None:  # a file may be another one when the run goes on
        config = with_values(config, {"data.chat_template": read_template(config.data.chat_template)})
    if config.data.date is not None or not asks_for_date(config):
        return config
    now = datetime.now().isoformat(timespec="seconds")
    return with_values(config, {_KEY: _find_earlier(config, run_dir) or now})


def describe_date(asked: Config, config: Config) -> str:
    """Format `the chat template prints the date: 2026-01-31T12:00:00 in all of this run`; empty where it does not."""
    if config.data.date is None or asked.data.date is not None:
        return ""
    return f"the chat template prints the date: {config.data.date} in all of this run (data.date)"


def asks_for_date(config: Config) -> bool:
    """Return whether the template that the run fills in asks what time it is; False for a model that is not there."""
    if config.data.chat_template is not None:
        return _ASKS in read_template(config.data.chat_template)
    with contextlib.suppress(RayqdError, OSError):  # the checks say what is wrong with the model
        return any(_ASKS.encode() in file.read_bytes() for file in template_files(config))
    return False


def _find_earlier(config: Config, run_dir: Path | None) -> str:
    file = (run_dir or config.run_dir) / CONFIG
    if file.is_file():
        return _read_date(file.read_bytes())
    stored = StoredRun.of(config)
    content = stored.folder.read(CONFIG) if stored else None
    return _read_date(content) if content else ""


def _read_date(content: bytes) -> str:
    try:
        date = tomllib.loads(content.decode())["data"]["date"]
    except (KeyError, TypeError, ValueError):
        return ""  # RunDirectory says what is wrong with it
    return date if isinstance(date, str) else ""
