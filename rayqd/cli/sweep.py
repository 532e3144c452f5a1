"""`rayqd sweep`"""

from __future__ import annotations

from rayqd.cli.command import Command, Given
from rayqd.cli.options import Option
from rayqd.config.sweep import sweep_help, sweep_of
from rayqd.console.quiet import quiet_driver


def _sweep(given: Given) -> int:
    spec = sweep_of(given.arguments)
    quiet_driver()
    if "dry-run" in given.options:
        from rayqd.commands.dry_run_sweep import dry_run_sweep

        return dry_run_sweep(spec)
    from rayqd.commands.sweep import sweep

    result = sweep(spec, resume="resume" in given.options)
    return 1 if any(outcome.state == "failed" for outcome in result.outcomes) else 0


_DETAILS = """\
A sweep file holds ordinary settings, a section [sweep], and in [sweep.over] the settings that the trials differ in:

    [sweep]
    search = "optuna"
    num_trials = 16
    scheduler = "asha"
    [sweep.over]
    learner.lr = {low = 1e-5, high = 1e-3, log = true}
    distill.lmbda = [0.0, 0.5, 1.0]

Every trial is an ordinary run in RUNS_DIR/NAME/TRIAL. The same command again runs what failed or did not end."""

COMMAND = Command(
    name="sweep",
    text="many runs that differ in a few settings, with Ray Tune, and which is best",
    run=_sweep,
    options=(
        Option(name="resume", text="the same command again, which refuses to begin a sweep anew"),
        Option(
            name="dry-run",
            text="check every trial as far as that goes before Ray starts, tell how many would run at a time and what "
            "they would ask of which nodes, and start and write nothing",
        ),
    ),
    details=f"{_DETAILS}\n{sweep_help()}",
    when_stopped="the same command goes on with the trials that have not ended",
    first_settings=(
        "name",
        "model.name",
        "data.source",
        "quant.format",
        "quant.group_size",
        "distill.lmbda",
        "distill.beta",
        "adapter.rank",
        "learner.steps",
        "learner.lr",
    ),
)
