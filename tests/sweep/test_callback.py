"""What Ray Tune tells of a trial, as the user reads it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rayqd.checksums import to_checked_json
from rayqd.config import Config
from rayqd.console.progress import Progress
from rayqd.runs.result_file import DistillResult
from rayqd.sweep.callback import TrialCallback
from rayqd.sweep.trials import TrialReport
from tests.example_events import arm_result


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("perplexity was not better in 2 evaluations than after step 2", "finished (perplexity was not better in 2 "),
        (None, "stopped early at step 6 of 8: "),
    ],
)
def test_who_ended_a_trial_before_its_last_step_is_told(tmp_path: Path, reason: str | None, said: str) -> None:
    output = io.StringIO()
    callback = TrialCallback(Progress(Console(file=output, width=300), 8), 0, 1)
    run = Config.model_validate({"name": "trial", "runs_dir": tmp_path, "learner": {"steps": 8}})
    result = DistillResult(
        name="trial",
        rows=(arm_result("distilled INT4", 0.25),),
        seconds={"total": 60.0},
        start_seconds={},
        num_steps=6,
        reason=reason,
    )
    run.run_dir.mkdir()
    (run.run_dir / "result.json").write_text(to_checked_json(result.to_json()))

    class Ended:  # as Tune's Trial
        config = callback.start(1, "001", run)
        last_result = TrialReport(step=6, kl_to_teacher=0.25, perplexity=10.25, done=True)
        pickled_error_file = None
        error_file = None

    callback.on_trial_complete(trial=Ended())
    assert f"001 {said}" in output.getvalue()
