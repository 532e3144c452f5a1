"""`rayqd config`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.load import load_config
from rayqd.config.resolved import to_toml


def _config(words: Sequence[str]) -> int:
    print(to_toml(load_config(words)), end="")
    return 0


COMMAND = Command(name="config", text="print the settings as they resolve, as TOML", run=_config)
