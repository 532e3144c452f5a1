"""`rayqd compare`"""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.cli.command import Command, words_alone
from rayqd.config import Config
from rayqd.config.switches import take_switches
from rayqd.errors import ConfigError


def _compare(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"json": ""})
    given = words_alone(others, "compare")
    if len(given) < 2:
        raise ConfigError("rayqd compare needs two runs or more: rayqd compare runs/a runs/b")
    from rayqd.commands.compare import compare

    compare(given, Config().runs_dir, as_json="json" in switches)
    return 0


COMMAND = Command(
    name="compare",
    text="put the results of runs side by side, with the settings that differ",
    run=_compare,
    operand="RUN RUN... [--json]",
    details="RUN is a run's directory, or its name in runs.\n--json     the same for programs",
    takes_settings=False,
)
