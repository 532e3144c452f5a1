"""`rayqd cluster`"""

from __future__ import annotations

from pathlib import Path

from rayqd.cli.command import Command, Given
from rayqd.cli.operands import Operand
from rayqd.config.load import config_of
from rayqd.console.quiet import quiet_driver


def _cluster(given: Given) -> int:
    config = config_of(given.arguments)
    quiet_driver()
    from rich.console import Console

    from rayqd.commands.cluster import validate

    return validate(Path(given.operands[1]), config, Console())


COMMAND = Command(
    name="cluster",
    text="check a cluster file, and that a run fits on the nodes it promises",
    run=_cluster,
    operands=(
        Operand(
            name="validate",
            needs="an action; there is validate",
            example="validate cluster.yaml",
            choices={"validate": "compare the file with its schema, and the run's roles with its nodes"},
        ),
        Operand(
            name="FILE",
            needs="a file",
            example="cluster.yaml @configs/gpu.toml",
            text="the cluster.yaml of `ray up`, or a RayJob or RayCluster of KubeRay",
        ),
    ),
    details="""\
A wrong key is named with its line (exit code 2). Then come the nodes that the file promises, and, for the settings
given, what each role will ask for and where it will land; the exit code is 1 if some role can never fit. No cloud is
asked.""",
)
