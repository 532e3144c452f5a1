"""What becomes of a run that is started: the others go on, and why one failed is known to the next start."""

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
from made_runs import INPUTS, every_job, make_jobs
from rich.console import Console

from rayqd.comparison.directory import ComparisonDirectory, read_failures
from rayqd.comparison.execute import ArmCallback, is_finished, run_baselines
from rayqd.console.progress import Progress
from rayqd.errors import WorkerError
from rayqd.sweep.suggest import FixedTrials, SuggesterSearch
from rayqd.sweep.trials import Trial


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()), num_steps=4)


def test_every_run_that_is_left_is_begun_once_and_a_failure_is_kept(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "seeds = [0]", "off-policy = {}\non-policy = {}")
    directory = ComparisonDirectory(jobs)
    left = [job for job in every_job(jobs) if job.arm.trains]
    callback = ArmCallback(directory, quiet(), left, {job.name: INPUTS for job in left}, num_done=1)
    trials = FixedTrials(Trial(number=number, settings={}) for number in range(len(left)))
    search = SuggesterSearch(trials, callback.begin, "kl_to_teacher")
    begun: Any = [search.suggest("a"), search.suggest("b")]
    assert [each["name"] for each in begun] == ["off-policy-seed=0-steps=4", "on-policy-seed=0-steps=4"]
    assert [each["run"]["name"] for each in begun] == [job.config.name for job in left]
    assert search.suggest("c") == SuggesterSearch.FINISHED

    class Failed:
        config = begun[1]
        last_result = None
        error_file = None
        pickled_error_file = str(tmp_path / "error")

    Path(Failed.pickled_error_file).write_bytes(pickle.dumps(WorkerError("the learner\nhas died")))
    failed: Any = Failed()
    callback.on_trial_error(trial=failed)
    assert read_failures(directory.path) == {"on-policy-seed=0-steps=4": "the learner has died"}
    assert [directory.outcome(job).state for job in left] == ["not run", "failed"]


@pytest.mark.slow
def test_baselines_that_fail_beside_each_other_say_why_and_leave_their_logs(tmp_path: Path) -> None:
    arms = f'gptq = {{}}\ntheirs = {{kind = "model", path = "{tmp_path}/nothing"}}\noff-policy = {{}}'
    jobs = make_jobs(tmp_path, "seeds = [0]", arms)
    directory = ComparisonDirectory(jobs)
    gptq, theirs = (job for job in jobs.baselines() if job.arm.name != "rtn")
    both = (gptq, theirs)
    with quiet() as progress:
        run_baselines(both, {job.name: INPUTS for job in both}, directory, progress, num_concurrent=2)
    for job in both:
        assert not is_finished(job)
        outcome = directory.outcome(job)
        assert outcome.state == "failed"
        assert "rayqd: error" in outcome.log
    assert "model 'm'" in directory.outcome(gptq).error
    assert directory.outcome(theirs).error.startswith(f"{tmp_path}/nothing: does not exist")
