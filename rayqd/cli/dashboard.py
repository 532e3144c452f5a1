"""`rayqd dashboard`"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rayqd.cli.command import Command
from rayqd.config.switches import take_switches
from rayqd.errors import ConfigError, StorageError


def _dashboard(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"out": "FILE"})
    if others:
        raise ConfigError(f'unexpected argument "{others[0]}"; there is rayqd dashboard [--out FILE]')
    from rayqd.metrics.grafana import dashboard

    text = json.dumps(dashboard(), indent=2) + "\n"
    if "out" not in switches:
        print(text, end="")
        return 0
    file = Path(switches["out"])
    try:
        file.write_text(text)
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror}") from error
    print(f"{file}: import it in Grafana (Dashboards, New, Import)")
    return 0


COMMAND = Command(
    name="dashboard",
    text="write the Grafana dashboard of the metrics that runs export",
    run=_dashboard,
    operand="[--out FILE]",
    details="Without --out it is printed. No setting changes it.",
)
