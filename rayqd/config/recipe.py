"""A Config as somebody would give it: the settings that are not the default, and the command that says them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from rayqd.config.resolved import setting_value
from rayqd.config.sections import Config
from rayqd.config.settings import settings, value_text

_UNHEEDED = {
    "distill": ("quant.method",),
    "quantize": ("quant.init", "adapter.", "distill.", "rollout.", "learner."),
}


def given_settings(config: Config, command: str, left_out: tuple[str, ...] = ()) -> dict[str, object]:
    """The settings that `command` heeds and that are not the default, in their order.

    `left_out` holds keys, and sections with a dot behind them.
    """
    default = Config()
    unheeded = (*left_out, *_UNHEEDED.get(command, ()))
    return {
        key: value
        for key in settings()
        if not _is_in(key, unheeded) and (value := setting_value(config, key)) != setting_value(default, key)
    }


def command_line(given: Iterable[tuple[str, object]], command: str) -> str:
    """`rayqd COMMAND --key value ...`, a flag a line."""
    flags = [f"--{key} {shlex.quote(_flag_text(value))}" for key, value in given]
    return " \\\n  ".join([f"rayqd {command}", *flags])


def _is_in(key: str, names: tuple[str, ...]) -> bool:
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def _flag_text(value: object) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    return str(value) if isinstance(value, str | Path) else value_text(value)
