"""`rayqd config`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.options import Option
from rayqd.config.load import config_of
from rayqd.config.markdown import settings_markdown
from rayqd.config.resolved import to_toml


def _config(given: Given) -> int:
    config = config_of(given.arguments)
    print(settings_markdown() if "markdown" in given.options else to_toml(config), end="")
    return 0


COMMAND = Command(
    name="config",
    text="print the settings as they resolve, as TOML",
    run=_config,
    options=(Option(name="markdown", text="instead, the reference of every setting: docs/configuration.md"),),
)
