"""What became of a comparison's runs, as their directories say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayqd.comparison.cost import Cost, cost_of_run
from rayqd.comparison.jobs import Job
from rayqd.config.comparison import ArmSpec
from rayqd.errors import RunError
from rayqd.events import ArmKind, ArmResult, EvalEvent, StepEvent
from rayqd.metrics.fidelity import Fidelity
from rayqd.runs.metrics_file import read_events
from rayqd.runs.paths import RESULT
from rayqd.runs.result_file import DistillResult, RunResult, read_result

_TAIL_LINES = 12  # of a failed run's log
_TAIL_BYTES = 1 << 14
LOG = "log.txt"  # of a run that trained; what a baseline's process printed lies in the comparison's directory
BASELINE_LOGS = "baselines"

State = Literal["finished", "failed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of a comparison."""

    job: Job
    result: RunResult | None  # None until it has finished
    error: str  # why it failed, in one line; else ""
    log: str  # the end of what a failed run printed; else ""

    @property
    def state(self) -> State:
        """Return how it stands."""
        return "finished" if self.result else "failed" if self.error else "not run"

    @property
    def row(self) -> ArmResult | None:
        """Return what was measured of the arm's model."""
        if self.result is None:
            return None
        if self.job.arm.kind == "rtn":
            return next(row for row in self.result.rows if row.arm.kind is ArmKind.RTN)
        return self.result.student

    @property
    def cost(self) -> Cost | None:
        """Return what it cost; None until it has finished, and of what was made elsewhere."""
        if self.result is None or self.job.arm.is_made_elsewhere:
            return None
        return cost_of_run(self.job, self.result)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """An arm over its seeds."""

    arm: ArmSpec
    runs: tuple[Outcome, ...]  # one a seed; one where no seed changes anything; none of the teacher

    @property
    def fidelities(self) -> dict[int | None, Fidelity]:
        """Return what was measured of the finished runs, by seed."""
        return {run.job.seed: run.row.fidelity for run in self.runs if run.row}

    @property
    def failed(self) -> list[Outcome]:
        """Return the runs that failed."""
        return [run for run in self.runs if run.state == "failed"]


def read_outcome(job: Job, comparison: Path, errors: Mapping[str, str]) -> Outcome:
    """Read what became of a run; `errors` say by name why some failed."""
    result = read_result(job.directory / RESULT)
    error = "" if result else errors.get(job.name, "")
    return Outcome(job=job, result=result, error=error, log=read_log_end(job, comparison) if error else "")


def read_log_end(job: Job, comparison: Path) -> str:
    """Return the last lines of what a run printed; empty where it printed nothing."""
    file = job.directory / LOG if job.arm.trains else comparison / BASELINE_LOGS / f"{job.name}.txt"
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line.rstrip() for line in lines if line.strip()][-_TAIL_LINES:])


def by_arm(arms: Sequence[ArmSpec], outcomes: Sequence[Outcome]) -> list[ArmOutcome]:
    """Group runs by their arms, in the order of the arms; a pilot is nobody's result, but its failure is its arm's."""
    counted = [outcome for outcome in outcomes if not outcome.job.is_pilot or outcome.state == "failed"]
    return [ArmOutcome(arm=arm, runs=tuple(o for o in counted if o.job.arm.name == arm.name)) for arm in arms]


def read_curve(run: Outcome) -> dict[int, tuple[int, Fidelity]]:
    """Return what was measured of a trained run by step, and the tokens until then; with its start and its end."""
    trained: dict[int, int] = {0: 0}
    measured: dict[int, Fidelity] = {}
    for event in read_events(run.job.directory):
        if isinstance(event, EvalEvent):
            measured[event.step] = event.fidelity  # of step 0 the last one: where training starts
        elif isinstance(event, StepEvent):
            step = event.learner
            trained[step.step] = trained.get(step.step - 1, 0) + step.num_loss_tokens
    if run.row:
        measured[_exported_step(run) or max(trained)] = run.row.fidelity
    return {step: (trained.get(step, 0), fidelity) for step, fidelity in sorted(measured.items())}


def _exported_step(run: Outcome) -> int | None:
    """Return of which step the weights are that were measured at the end; None where that is the last one."""
    return run.result.exported_step if isinstance(run.result, DistillResult) else None


def check_same_rows(arms: Sequence[ArmOutcome]) -> None:
    """Raise RunError where runs were not measured on the same rows."""
    first: tuple[str, tuple[int, ...]] | None = None
    for arm in arms:
        for run in arm.runs:
            rows = run.row.fidelity.by_row if run.row else None
            if run.row and rows is None:
                raise RunError(f"{run.job.directory} is from before results kept their rows: remove it to make it anew")
            if rows and first and rows.num_tokens != first[1]:
                raise RunError(f"{run.job.directory} and {first[0]} were measured on different rows")
            if rows and not first:
                first = str(run.job.directory), rows.num_tokens
