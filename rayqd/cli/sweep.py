"""`rayqd sweep`"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from rayqd.cli.command import Command
from rayqd.config.sweep import load_sweep, sweep_help
from rayqd.config.switches import take_switches
from rayqd.console.quiet import quiet_driver


def _sweep(words: Sequence[str]) -> int:
    switches, others = take_switches(words, {"resume": ""})
    config = load_sweep(others)
    quiet_driver()
    from rayqd.commands.sweep import sweep

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a job is an orderly end, as Ctrl-C is
    try:
        result = sweep(config, resume="resume" in switches)
    except KeyboardInterrupt:
        print("rayqd: stopped; the same command goes on with the trials that have not ended", file=sys.stderr)
        return 130
    return 1 if any(trial["state"] == "failed" for trial in result["trials"]) else 0


SWEEP_DETAILS = """\
A sweep file holds ordinary settings, a section [sweep], and in [sweep.over] the settings that the trials differ in:

    [sweep]
    search = "optuna"
    num_trials = 16
    scheduler = "asha"
    [sweep.over]
    learner.lr = {low = 1e-5, high = 1e-3, log = true}
    distill.lmbda = [0.0, 0.5, 1.0]

Every trial is an ordinary run in RUNS_DIR/NAME/TRIAL. The same command again runs what failed or did not end.
--resume      the same, and refuses to begin a sweep anew"""

COMMAND = Command(
    name="sweep",
    text="many runs that differ in a few settings, with Ray Tune, and which is best",
    run=_sweep,
    operand="[--resume]",
    details=f"{SWEEP_DETAILS}\n{sweep_help()}",
)
