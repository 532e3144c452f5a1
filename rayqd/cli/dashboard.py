"""`rayqd dashboard`"""

from __future__ import annotations

import json

from rayqd.cli.command import Command, Given
from rayqd.cli.options import Option
from rayqd.errors import StorageError


def _dashboard(given: Given) -> int:
    from rayqd.metrics.grafana import dashboard

    text = json.dumps(dashboard(), indent=2) + "\n"
    file = given.path("out")
    if file is None:
        print(text, end="")
        return 0
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
    options=(Option(name="out", value="FILE", text="where to; without it, it is printed"),),
    takes_settings=False,
)
