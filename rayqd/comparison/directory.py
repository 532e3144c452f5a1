"""A comparison's directory: what its arms share, what each run read, why runs failed. Each run has its own inside."""

from __future__ import annotations

from pathlib import Path

from rayqd.comparison.inputs import Inputs, KnownInputs
from rayqd.comparison.jobs import Job, Jobs
from rayqd.comparison.outcomes import Outcome, read_outcome
from rayqd.config import Config
from rayqd.config.resolved import with_values
from rayqd.config.settings import settings
from rayqd.errors import RunError
from rayqd.runs.directory import describe_run_dir
from rayqd.runs.directory_of_runs import DirectoryOfRuns, Ledger

_OF_EACH_RUN = ("seed", "learner.steps")  # which [compare] has
_LEDGER, _KEY = "runs.jsonl", "name"  # a damaged line costs no more than a reason


class ComparisonDirectory(DirectoryOfRuns):
    """`config.toml` is what all arms share. Arms, seeds and budget may change: each run says itself what it is."""

    def __init__(self, jobs: Jobs) -> None:
        """Lock the directory; raises RunError where another process, another comparison, or something else has it."""
        super().__init__(shared_config(jobs), "compare", ledger=_LEDGER, key=_KEY)
        try:
            self._inputs = KnownInputs(self.path)
        except RunError:
            self.close()
            raise

    def begin(self, job: Job, inputs: Inputs) -> None:
        """Record what a run reads that begins now, and forget why it failed before."""
        self._inputs.record(job, inputs)
        self._ledger.begin(job.name)

    def fail(self, job: Job, why: str) -> None:
        """Record why a run failed."""
        self._ledger.fail(job.name, why)

    def outcome(self, job: Job) -> Outcome:
        """Return what became of a run."""
        return read_outcome(job, self.path, read_failures(self.path))


def read_failures(comparison: Path) -> dict[str, str]:
    """Return why runs of the comparison in a directory failed, by name, unless they have been begun again."""
    return {str(name): why for name, why in Ledger(comparison / _LEDGER, _KEY).errors().items()}


def shared_config(jobs: Jobs) -> Config:
    """Return what all runs share: seeds and steps have their defaults, whatever they are."""
    return with_values(jobs.base, {key: settings()[key].default for key in _OF_EACH_RUN})


def check_directory(jobs: Jobs, known: list[tuple[Job, Inputs]]) -> None:
    """Raise RunError where the directory, or a run in it, is of another comparison, or read something else.

    Writes nothing.
    """
    describe_run_dir(shared_config(jobs), "compare")
    inputs = KnownInputs(jobs.base.run_dir)
    for job, now in known:
        describe_run_dir(job.config, job.arm.command)
        inputs.check(job, now)
