"""`rayqd doctor RUN`: what a run trained on, held against its plan."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path

from pydantic import TypeAdapter
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from rayqd.checksums import find_damage
from rayqd.config import Config
from rayqd.data.plan import Plan
from rayqd.doctor.audit import Expected, Tally, find_faults
from rayqd.errors import RunError
from rayqd.learner.audit_trail import digest_weights
from rayqd.learner.checkpoint import Checkpoints
from rayqd.runs.audit_file import read_audit
from rayqd.runs.config_file import command_of, load_run_config
from rayqd.runs.lines import read_lines
from rayqd.runs.paths import AUDIT, CHECKPOINTS, CONFIG, QUARANTINE
from rayqd.runs.record import is_running, read_run
from rayqd.runs.result_file import DistillResult

_MAX_SHOWN = 5


def examine_run(path: Path) -> int:
    """Print in one line that each planned sequence was trained once, or the steps that say otherwise.

    Returns the exit code, 1 for the latter. Raises RunError where there is nothing to check.
    """
    if (command := command_of(path / CONFIG)) != "distill":
        raise RunError(f"{path} is a run of rayqd {command}, which trains nothing: there is nothing to check")
    config = load_run_config(path / CONFIG)
    rows = read_audit(path / AUDIT)
    first = next(rows, None)
    if first is None and not (path / AUDIT).exists():
        raise RunError(f"{path} has no {AUDIT}: it has trained no step yet, or an earlier version did")
    if first is None or "plan" not in first:
        raise RunError(f"{path / AUDIT}: its first line, which holds the plan, is damaged or missing")
    tally = Tally()
    expected = _expect(path, config, _plan(path, config, first["plan"]))
    faults = list(islice(find_faults(chain([first], rows), expected, tally), _MAX_SHOWN + 1))
    if not faults:
        print(f"{path}: {describe(tally, config.learner.steps)}")
        return 0
    for fault in faults[:_MAX_SHOWN]:
        print(f"{path}: {fault}")
    if len(faults) > _MAX_SHOWN:
        print(f"{path}: and more behind it")
    return 1


def describe(tally: Tally, num_steps: int) -> str:
    """Format `all 128 steps as planned, each of their 128 sequences trained once; 64 written by the student, ...`."""
    steps = (
        f"all {num_steps:,} steps" if tally.num_steps == num_steps else f"{tally.num_steps:,} of {num_steps:,} steps"
    )
    parts = [f"{steps} are as planned, {tally.num_sequences:,} sequences, each trained on once"]
    if tally.num_written:
        parts.append(f"{tally.num_written:,} written by the student, at most {tally.staleness} versions behind")
    if tally.num_left_out:
        parts.append(f"{tally.num_left_out:,} left out, as {QUARANTINE} says")
    if tally.num_remade:
        parts.append(f"{tally.num_remade:,} steps made again after a loss")
    if tally.num_checkpoints:
        parts.append(f"{tally.num_checkpoints} checkpoints hold the weights that were trained")
    return "; ".join(parts)


def _plan(path: Path, config: Config, recorded: object) -> Plan:
    try:
        plan = TypeAdapter(Plan).validate_python(recorded)
    except ValueError as error:
        raise RunError(f"{path / AUDIT}: its plan is of another version of rayqd") from error
    own = (config.seed, config.learner.batch_size, config.distill.lmbda)
    if (plan.seed, plan.batch_size, plan.lmbda) != own:
        raise RunError(f"{path}: {AUDIT} and {CONFIG} are of different runs: seed, learner.batch_size or distill.lmbda")
    return plan


def _expect(path: Path, config: Config, plan: Plan) -> Expected:
    quarantined = {(row.get("step"), row.get("index")) for row in read_lines(path / QUARANTINE)[0]}
    return Expected(
        plan=plan,
        max_staleness=None if config.rollout.max_staleness == "auto" else config.rollout.max_staleness,
        num_steps=_count_lasting_steps(path),
        left_out={(step, index) for step, index in quarantined if isinstance(step, int) and isinstance(index, int)},
        weights=_digest_checkpoints(path),
        num_teachers=len(config.teachers),
    )


def _count_lasting_steps(path: Path) -> int:
    """Return how many steps will not be done again: all of a run that has finished, else those of its checkpoint."""
    result = read_run(path).result
    if isinstance(result, DistillResult):
        return result.num_steps
    return 0 if is_running(path) else max(Checkpoints(path / CHECKPOINTS, keep=1).steps(), default=0)


def _digest_checkpoints(path: Path) -> dict[int, str]:
    """Return the digests of the trained weights in whole checkpoints, by step."""
    checkpoints = Checkpoints(path / CHECKPOINTS, keep=1)
    whole = [step for step in checkpoints.steps() if find_damage(checkpoints.path(step)) is None]
    return {step: digest_weights(load_file(checkpoints.path(step) / "student.safetensors")) for step in whole}
