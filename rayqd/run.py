"""The composition root: the one file that knows everybody.

check what can be checked ─► start Ray ─► start every role at once ─► Ray Train runs the learner
                                                │
                   rollouts and teachers load their models while the learner starts
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rayqd.actors.cluster import connect
from rayqd.actors.roles import Roles
from rayqd.actors.rollout import MakeEngine
from rayqd.cluster.placement import nodes_text
from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.follow import Follower
from rayqd.observe.progress import Progress
from rayqd.observe.run_directory import RunDirectory
from rayqd.observe.table import print_result
from rayqd.preflight import check, load_data, summary

_GOODBYE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished run leaves."""

    run_dir: Path
    export_dir: Path
    rows: list[dict[str, Any]]  # one a model: teacher, round-to-nearest, distilled


def distill(config: Config, console: Console | None = None, *, make_engine: MakeEngine | None = None) -> Result:
    """Run `config` to its end, from its last checkpoint if there is one; a finished run only tells its result.

    `make_engine` is called in every rollout worker; without it the engine is vLLM. Raises a RayqdError that says in one
    line what is wrong.
    """
    console = console or Console()
    config = with_absolute_paths(config)
    run_dir = RunDirectory(config)
    try:
        result = run_dir.result
        if result is None:
            result = _run(config, run_dir, console, make_engine)
            run_dir.finish(result)
        else:
            console.print(f"{run_dir.path} has finished already; this is its result", highlight=False, soft_wrap=True)
    finally:
        run_dir.close()
    cost = f"what {config.quant.format.upper()} cost, and how much of it came back"
    print_result(console, result, run_dir.path, title=cost)
    return Result(run_dir=run_dir.path, export_dir=run_dir.path / "export", rows=result["rows"])


def _run(config: Config, run_dir: RunDirectory, console: Console, make_engine: MakeEngine | None) -> dict[str, Any]:
    began = time.monotonic()
    with Progress(console, config.learner.steps) as progress:
        progress.say(
            f"{config.name}: {config.model.name} to {config.quant.format.upper()}, groups of {config.quant.group_size}"
        )
        progress.status("checking model and configuration")
        training, heldout = load_data(check(config), config)
        progress.say(f"data: {summary(training)}; held out: {summary(heldout)}")
        progress.status("starting Ray")
        with connect(config) as cluster:
            run_dir.link_logs(cluster.log_dir)
            roles = Roles(config, cluster, make_engine)
            if roles.nodes_to_start:
                progress.say(f"waiting for the cluster to start {nodes_text(roles.nodes_to_start)}")
            roles.set_data(training, heldout)
            follower = Follower(roles, config, run_dir, progress)
            finished = follower.until_finished()
            roles.wait_for_end(timeout_seconds=_GOODBYE_SECONDS)
            seconds = {"total": time.monotonic() - began, **roles.seconds(), "learner": follower.learner_seconds}
    return {
        "name": config.name,
        "rows": finished["rows"],
        "seconds": {role: round(value, 1) for role, value in seconds.items()},
        "num_steps": config.learner.steps,
        "export": str(run_dir.path / "export"),
    }
