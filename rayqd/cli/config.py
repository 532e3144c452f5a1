"""`rayqd config`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.load import load_config
from rayqd.config.markdown import settings_markdown
from rayqd.config.resolved import to_toml
from rayqd.config.switches import take_switches


def _config(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"markdown": ""})
    config = load_config(others)
    print(settings_markdown() if "markdown" in switches else to_toml(config), end="")
    return 0


COMMAND = Command(
    name="config",
    text="print the settings as they resolve, as TOML",
    run=_config,
    operand="[--markdown]",
    details="--markdown     instead, the reference of every setting: docs/configuration.md",
)
