"""A comparison's directory: what its arms share, what each run read, why runs failed. Each run has its own inside."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter

from rayqd.comparison.inputs import Inputs, KnownInputs
from rayqd.comparison.jobs import Job, Jobs
from rayqd.comparison.outcomes import Outcome, read_outcome
from rayqd.config import Config
from rayqd.config.resolved import with_values
from rayqd.config.settings import settings
from rayqd.errors import RunError
from rayqd.files import write_text
from rayqd.runs.directory import Result, RunDirectory, describe_run_dir

_OF_EACH_RUN = ("seed", "learner.steps")  # which [compare] has
_FAILURES = TypeAdapter(dict[str, str])


class ComparisonDirectory:
    """`config.toml` is what all arms share. Arms, seeds and budget may change: each run says itself what it is."""

    def __init__(self, jobs: Jobs) -> None:
        """Lock the directory; raises RunError where another process, another comparison, or something else has it."""
        self._run_dir = RunDirectory(shared_config(jobs), "compare")
        self.path = self._run_dir.path
        self._failures = self.path / "failures.json"
        try:
            self._inputs = KnownInputs(self.path)
        except RunError:
            self.close()
            raise

    def begin(self, job: Job, inputs: Inputs) -> None:
        """Record what a run reads that begins now, and forget why it failed before."""
        self._inputs.record(job, inputs)
        self._write_failures({name: why for name, why in self.failures().items() if name != job.name})

    def fail(self, job: Job, why: str) -> None:
        """Record why a run failed."""
        self._write_failures({**self.failures(), job.name: why})

    def failures(self) -> dict[str, str]:
        """Return why runs failed, by name."""
        try:
            return _FAILURES.validate_json(self._failures.read_bytes())
        except (FileNotFoundError, ValueError):  # what is lost is only the reason
            return {}

    def outcome(self, job: Job) -> Outcome:
        """Return what became of a run."""
        return read_outcome(job, self.path, self.failures())

    def finish(self, result: Result) -> None:
        """Write `result.json`."""
        self._run_dir.finish(result)

    def link_logs(self, logs: Path | None) -> None:
        """Link to Ray's logs, if they are on this machine."""
        self._run_dir.link_logs(logs)

    def close(self) -> None:
        """Unlock the directory."""
        self._run_dir.close()

    def _write_failures(self, failures: dict[str, str]) -> None:
        if failures or self._failures.exists():
            write_text(self._failures, json.dumps(failures, indent=1, ensure_ascii=False) + "\n")


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
