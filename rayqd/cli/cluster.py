"""`rayqd cluster`"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from rayqd.cli.command import Command
from rayqd.config.arguments import read_arguments
from rayqd.config.load import config_of, unexpected
from rayqd.console.quiet import quiet_driver
from rayqd.errors import ConfigError

CLUSTER_DETAILS = """\
FILE is the cluster.yaml of `ray up`, or a RayJob or RayCluster of KubeRay. A wrong key is named with its line (exit
code 2). Then come the nodes that the file promises, and, for the settings given, what each role will ask for and
where it will land; the exit code is 1 if some role can never fit. No cloud is asked."""


def _cluster(words: Sequence[str]) -> int:
    arguments = read_arguments(words)
    action, *operands = [*arguments.words, ""]
    if action != "validate":
        near = difflib.get_close_matches(action, ["validate"], n=1)
        hint = "did you mean validate?" if near else "there is validate: rayqd cluster validate cluster.yaml"
        raise ConfigError(f'unknown action "{action}"; {hint}' if action else f"rayqd cluster needs an action; {hint}")
    file, *others = operands
    if not file:
        raise ConfigError("rayqd cluster validate needs a file: rayqd cluster validate cluster.yaml @configs/gpu.toml")
    if others[:-1]:
        raise ConfigError(unexpected(others[0]))
    config = config_of(arguments)
    quiet_driver()
    from rich.console import Console

    from rayqd.commands.cluster import validate

    return validate(Path(file), config, Console())


COMMAND = Command(
    name="cluster",
    text="check a cluster file, and that a run fits on the nodes it promises",
    run=_cluster,
    operand="validate FILE",
    details=CLUSTER_DETAILS,
)
