"""Runs what is missing: baselines each in a process of its own, arms that train through the sweep's machinery."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.inputs import Inputs
from rayqd.comparison.jobs import Job
from rayqd.comparison.outcomes import BASELINE_LOGS
from rayqd.config.resolved import to_toml
from rayqd.console.progress import Progress
from rayqd.files import write_text
from rayqd.runs.paths import RESULT
from rayqd.runs.record import is_running
from rayqd.runs.result_file import read_result
from rayqd.sweep.callback import TrialCallback
from rayqd.sweep.suggest import FixedTrials, SuggesterSearch
from rayqd.sweep.trial_run import TrialResources
from rayqd.sweep.trials import Trial, TrialConfig
from rayqd.sweep.tuner import SharedHandle, run_trials

_METRIC = "kl_to_teacher"
_PATIENCE_SECONDS = 600.0  # with the process of a comparison that was killed: it goes on to its end by itself
_POLL_SECONDS = 0.1
_ERROR = "rayqd: error: "


def is_finished(job: Job) -> bool:
    """Return whether the job's run has come to its end."""
    return read_result(job.directory / RESULT) is not None


def run_baselines(
    jobs: Sequence[Job],
    inputs: Mapping[str, Inputs],
    directory: ComparisonDirectory,
    progress: Progress,
    num_concurrent: int = 1,
) -> None:
    """Run the commands of those of `jobs` that have not finished, so many at a time; failures are recorded.

    Each has a process of its own, whose memory and whose faults go with it.
    """
    left = deque(jobs)
    running: list[_Baseline] = []
    try:
        while left or running:
            while left and len(running) < num_concurrent:
                job = left.popleft()
                _wait_for_earlier(job, progress)
                if is_finished(job):
                    progress.say(f"{job.name} has finished already")
                else:
                    directory.begin(job, inputs[job.name])
                    running.append(_Baseline(job, directory.path, progress))
            for baseline in [each for each in running if each.process.poll() is not None]:
                running.remove(baseline)
                baseline.record(directory, progress)
            progress.status(f"without training: {', '.join(each.job.name for each in running)}")
            time.sleep(_POLL_SECONDS)
    finally:
        for each in running:
            each.process.kill()
            each.process.wait()


def baseline_words(job: Job) -> list[str]:
    """Return what follows `rayqd`, but for the settings, in the command that makes or measures an untrained arm."""
    return ["eval", job.arm.path, "--as-run"] if job.arm.is_made_elsewhere else [job.arm.command]


class _Baseline:
    """The process of an arm without training."""

    def __init__(self, job: Job, comparison: Path, progress: Progress) -> None:
        progress.say(f"{job.name} begins")
        logs = comparison / BASELINE_LOGS
        logs.mkdir(exist_ok=True)
        settings = logs / f"{job.name}.toml"
        write_text(settings, to_toml(job.config))
        self.job = job
        self._log = logs / f"{job.name}.txt"
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "rayqd", *baseline_words(job), f"@{settings}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def record(self, directory: ComparisonDirectory, progress: Progress) -> None:
        """Say what its run came to, and keep why it failed."""
        name = self.job.name
        if result := read_result(self.job.directory / RESULT):
            progress.say(f"{name} finished: KL to teacher {result.student.fidelity.kl_to_teacher:.4f}")
            return
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        why = errors[-1] if errors else f"its process ended with exit code {self.process.returncode}"
        directory.fail(self.job, why)
        progress.say(f"{name} failed: {why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Trains arms on a cluster."""

    directory: ComparisonDirectory
    progress: Progress
    resources: TrialResources
    shared: SharedHandle
    num_concurrent: int

    def run(self, jobs: Sequence[Job], inputs: Mapping[str, Inputs]) -> None:
        """Run those of `jobs` that have not finished, each from its last checkpoint; failures are recorded."""
        left = [job for job in jobs if not is_finished(job)]
        if not left:
            return
        callback = ArmCallback(self.directory, self.progress, left, inputs, num_done=len(jobs) - len(left))
        trials = FixedTrials(Trial(number=number, settings={}) for number in range(len(left)))
        run_trials(
            SuggesterSearch(trials, callback.begin, _METRIC),
            len(left),
            min(self.num_concurrent, len(left)),
            halving=None,
            ended=[],
            metric=_METRIC,
            callback=callback,
            directory=self.directory.path,
            shared=self.shared,
            resources=self.resources,
        )


class ArmCallback(TrialCallback):
    """What Ray Tune tells of the runs goes to the screen and into the comparison's directory."""

    def __init__(
        self,
        directory: ComparisonDirectory,
        progress: Progress,
        jobs: Sequence[Job],
        inputs: Mapping[str, Inputs],
        num_done: int,
    ) -> None:
        """Take the runs that are left, by number, what each of them reads, and how many are done already."""
        super().__init__(progress, num_done, len(jobs) + num_done)
        self._directory = directory
        self._jobs = jobs
        self._inputs = inputs

    def begin(self, trial: Trial) -> TrialConfig:
        """Return the run as Tune is to know it."""
        job = self._jobs[trial.number]
        self._directory.begin(job, self._inputs[job.name])
        return self.start(trial.number, job.name, job.config)

    def keep_failure(self, number: int, why: str) -> None:
        """Record it in the comparison's directory."""
        self._directory.fail(self._jobs[number], why)


def _wait_for_earlier(job: Job, progress: Progress) -> None:
    """Wait for a process that a killed comparison left behind."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while is_running(job.directory) and time.monotonic() < deadline:
        progress.status(f"{job.name} is still going on in a process of an earlier start")
        time.sleep(1.0)
