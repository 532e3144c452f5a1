"""A finished run that goes on with more steps: what may differ from the settings that it was started with."""

from __future__ import annotations

import re
from pathlib import Path

from rayqd.config import Config
from rayqd.config.resolved import differences
from rayqd.errors import RunError
from rayqd.runs.paths import CHECKPOINTS
from rayqd.runs.result_file import DistillResult, RunResult
from rayqd.runs.storage.stored_run import StoredRun

_CHECKPOINT = re.compile(r"step-\d{6,}")
_LENGTHS = {"learner.steps", "distill.on_policy_after"}


def is_done(result: RunResult | None, config: Config) -> bool:
    """Return whether a run with this `result` has nothing more to train."""
    if not isinstance(result, DistillResult) or result.stopped_early:
        return False
    return result.reason is not None or result.num_steps >= config.learner.steps


def is_extension(location: str, old: Config, new: Config, result: RunResult | None) -> bool:
    """Return whether `new` only asks for more steps of a run that has finished with `old`.

    Raises RunError where more steps would be none, or would change those that are done.
    """
    changed = {line.partition(":")[0] for line in differences(old, new)}
    asks = new.learner.steps > old.learner.steps and changed <= _LENGTHS
    if not asks or not isinstance(result, DistillResult) or not is_done(result, old):
        return False
    done = f"{location} has finished {result.num_steps} steps"
    if result.reason:
        raise RunError(
            f"{done}, early, as {result.reason}: with more of them it would end there again; "
            "give a run with a larger eval.patience another name"
        )
    if old.first_on_policy_step != new.first_on_policy_step:
        share = old.first_on_policy_step / new.learner.steps
        raise RunError(
            f"{done}, the first {old.first_on_policy_step} of them off-policy, and with distill.on_policy_after="
            f"{new.distill.on_policy_after:g} of {new.learner.steps} it would be {new.first_on_policy_step}: "
            f"--distill.on_policy_after {share:.12g} leaves them as they were"
        )
    return True


def check_checkpoints(run_dir: Path, stored: StoredRun | None, new: Config) -> None:
    """Raise RunError where a finished run has no checkpoint, neither here nor in its storage, to go on from."""
    names = [path.name for path in (run_dir / CHECKPOINTS).glob("*")]
    if stored:
        names += stored.folder.inside(CHECKPOINTS).directories()
    if not any(_CHECKPOINT.fullmatch(name) for name in names):
        raise RunError(
            f"{run_dir} has finished, and no checkpoint of it is there{f' or in {stored.folder}' if stored else ''}: "
            f"{new.learner.steps} steps would begin at the first one; give it another name"
        )
