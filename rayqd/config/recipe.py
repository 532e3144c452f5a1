"""A Config as somebody would give it: the settings that are not the default, and the command that says them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from rayqd.config.resolved import setting_value
from rayqd.config.sections import Config
from rayqd.config.sections.markers import IgnoredBy, Marker
from rayqd.config.settings import settings, settings_with, value_text


def given_settings(config: Config, command: str, without: Sequence[type[Marker]] = ()) -> dict[str, object]:
    """Return the settings that `command` reads and that are not the default, in their order.

    Those that carry a marker of a kind in `without` are left out.
    """
    default = Config()
    left_out = settings_with(*without)
    return {
        key: value
        for key, setting in settings().items()
        if key not in left_out
        and IgnoredBy(command) not in setting.markers
        and (value := setting_value(config, key)) != setting_value(default, key)
    }


def command_line(given: Iterable[tuple[str, object]], command: str) -> str:
    """Return `rayqd COMMAND --key value ...`, a flag a line."""
    flags = [f"--{key} {shlex.quote(_flag_text(value))}" for key, value in given]
    return " \\\n  ".join([f"rayqd {command}", *flags])


def _as_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_defaults=True)
    raise TypeError(f"{type(value).__name__} is no value of a setting")


def _flag_text(value: object) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, default=_as_json)
    return str(value) if isinstance(value, str | Path) else value_text(value)
