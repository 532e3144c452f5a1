"""A sweep's directory: what a resumed sweep reads there, what the table and the page say of it."""

import html
import io
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.config import load_config
from rayqd.config.resolved import to_toml
from rayqd.config.sweep import load_sweep
from rayqd.errors import RunError
from rayqd.events import RecordedEvent, to_json
from rayqd.runs.directory import RunDirectory
from rayqd.runs.result_file import DistillResult, StoppedEarly
from rayqd.sweep.directory import SweepDirectory
from rayqd.sweep.report import write_page
from rayqd.sweep.report.axes import position, setting_axis
from rayqd.sweep.results import SweepResult, format_best_toml, print_result
from rayqd.sweep.study import Study
from rayqd.sweep.trial_run import reuse_start
from rayqd.sweep.trials import Evaluation, Trial, find_best, read_outcome
from tests.example_events import arm_result, eval_event, fidelity, step_event

FLAGS = (
    "--sweep.over.distill.lmbda", "0,1", "--sweep.over.distill.beta", "0,0.5", "--learner.steps", "8",
    "--sweep.scheduler", "asha", "--sweep.grace-steps", "2", "--sweep.reduction-factor", "2", "--name", "s",
)  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(load_sweep([*FLAGS, f"--runs-dir={tmp_path}"]))


@pytest.fixture
def directory(study: Study) -> Any:
    opened = SweepDirectory(study.base, study.sweep)
    yield opened
    opened.close()


def leave(path: Path, kls: list[float], result: DistillResult | None = None) -> None:
    """What a trial leaves: an evaluation before the first step and after every second one, and its result."""
    path.mkdir()
    events: list[RecordedEvent] = [eval_event(f"after step {2 * i}", kl, step=2 * i) for i, kl in enumerate(kls)]
    steps = range(1, 2 * len(kls) - 1)
    events += [step_event(step, teacher_cache_hits=3, teacher_cache_misses=1) for step in steps]
    (path / "metrics.jsonl").write_text("".join(json.dumps(to_json(event, time=0.0)) + "\n" for event in events))
    if result:
        (path / "result.json").write_text(json.dumps(result.to_json()))


def finished(kl: float, step: int, stopped_early: StoppedEarly | None = None) -> DistillResult:
    return DistillResult(
        name="trial",
        rows=(arm_result("distilled INT4", kl),),
        seconds={"total": 60.0, "teacher": 2.0},
        start_seconds={"teacher-0": 5.0},
        num_steps=step,
        stopped_early=stopped_early,
    )


@pytest.fixture
def trials(study: Study, directory: SweepDirectory) -> list[Trial]:
    """One that finished, one that was stopped early, one that failed, and one that was interrupted."""
    planned = study.planned_trials()
    for trial in planned:
        directory.begin(trial)
    paths = [directory.path / trial.name for trial in planned]
    leave(paths[0], [0.5, 0.4, 0.3, 0.2], finished(0.15, 8))
    leave(paths[1], [0.5, 0.45], finished(0.45, 2, StoppedEarly(step=2, of=8)))
    directory.fail(planned[2].number, "the <engine> broke")
    leave(paths[3], [0.5, 0.3, 0.25])
    return planned


def test_what_became_of_a_trial_is_read_from_its_directory(directory: SweepDirectory, trials: list[Trial]) -> None:
    done, early, failed, interrupted = directory.outcomes()
    assert (done.state, done.step, done.last) == (
        "finished",
        8,
        Evaluation(step=8, kl_to_teacher=0.15, perplexity=10.15),
    )
    assert [(point.step, point.kl_to_teacher, point.perplexity) for point in done.curve] == [
        (0, 0.5, 10.5), (2, 0.4, 10.4), (4, 0.3, 10.3), (6, 0.2, 10.2), (8, 0.15, 10.15),
    ]  # fmt: skip
    assert done.teacher_seconds == 5.0 + 2.0
    assert (done.cache_hits, done.cache_misses) == (6 * 3, 6 * 1)
    assert (early.state, early.step, early.metric("kl_to_teacher")) == ("stopped early", 2, 0.45)
    assert (failed.state, failed.metric("kl_to_teacher"), failed.error) == ("failed", None, "the <engine> broke")
    assert (interrupted.state, interrupted.step, interrupted.metric("kl_to_teacher")) == ("unfinished", 4, 0.25)
    assert [outcome.ended for outcome in (done, early, failed, interrupted)] == [True, True, False, False]


def test_a_trial_comes_to_what_it_exports_which_stands_in_the_curve_at_its_own_step(
    study: Study, directory: SweepDirectory
) -> None:
    trial = study.planned_trials()[0]
    directory.begin(trial)
    leave(directory.path / trial.name, [0.5, 0.4, 0.2, 0.3, 0.45], replace(finished(0.2, 8), exported_step=4))
    (outcome,) = directory.outcomes()
    assert [(each.step, each.kl_to_teacher) for each in outcome.curve] == [
        (0, 0.5), (2, 0.4), (4, 0.2), (6, 0.3), (8, 0.45),
    ]  # fmt: skip
    assert (outcome.step, outcome.metric("kl_to_teacher")) == (8, 0.2)
    assert "KL to teacher 0.2000 at step 4 of 8" in format_best_toml(study, outcome)


def test_a_trial_that_is_begun_again_has_not_failed(directory: SweepDirectory, trials: list[Trial]) -> None:
    directory.begin(trials[2])
    assert [outcome.state for outcome in directory.outcomes()][2] == "unfinished"
    assert [trial.number for trial in directory.begun()] == [1, 2, 3, 4]


def test_half_a_line_that_a_killed_process_left_is_forgotten(study: Study, directory: SweepDirectory) -> None:
    trial = study.planned_trials()[0]
    directory.begin(trial)
    with (directory.path / "trials.jsonl").open("a") as ledger:
        ledger.write('{"number": 2, "set')
    directory.close()
    again = SweepDirectory(study.base, study.sweep)
    again.fail(1, "why")
    assert (again.begun(), again.errors()) == ([trial], {1: "why"})
    again.close()


def test_a_second_process_and_another_sweep_are_refused(
    study: Study, directory: SweepDirectory, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="is in use"):
        SweepDirectory(study.base, study.sweep)
    directory.close()
    other = Study(load_sweep([*FLAGS, f"--runs-dir={tmp_path}", "--sweep.over.distill.beta", "0,1"]))
    with pytest.raises(RunError, match=r"another sweep \(sweep.over.distill.beta: \[0.0, 0.5\] -> \[0.0, 1.0\]\)"):
        SweepDirectory(other.base, other.sweep)
    faster = Study(load_sweep([*FLAGS, f"--runs-dir={tmp_path}", "--sweep.max-concurrent", "4"]))
    SweepDirectory(faster.base, faster.sweep).close()
    with pytest.raises(RunError, match="belongs to `rayqd sweep`"):
        RunDirectory(study.base)


def test_only_what_has_not_ended_is_tried_again(study: Study, directory: SweepDirectory, trials: list[Trial]) -> None:
    suggester = study.make_suggester(directory.outcomes())
    assert [suggester.next("a"), suggester.next("b"), suggester.next("c")] == [trials[2], trials[3], None]


def test_the_best_is_one_that_came_to_its_end(study: Study, directory: SweepDirectory, trials: list[Trial]) -> None:
    leave_better = directory.path / trials[2].name
    leave(leave_better, [0.5, 0.01], finished(0.01, 2, StoppedEarly(step=2, of=8)))
    best = find_best(directory.outcomes(), "kl_to_teacher")
    assert best is not None
    assert best.trial == trials[0]
    (directory.path / "best.toml").write_text(format_best_toml(study, best))
    config = load_config([f"@{directory.path / 'best.toml'}"])
    assert (config.name, config.distill.lmbda, config.distill.beta) == ("s-best", 0.0, 0.0)
    assert config.eval.every == 2  # where asha looked


def test_the_table_and_the_result_go_from_best_to_worst(
    study: Study, directory: SweepDirectory, trials: list[Trial]
) -> None:
    sweep_result = SweepResult.of(study, directory.outcomes())
    result: Any = sweep_result.to_json()
    assert [(trial["number"], trial["kl_to_teacher"]) for trial in result["trials"]] == [
        (1, 0.15), (4, 0.25), (2, 0.45), (3, None),
    ]  # fmt: skip
    # 5 s of loading and 2 s of scoring in each of the two that have a result; 3 hits and a miss a step of 6, 2 and 4
    assert result["teacher"] == {"seconds": 14.0, "cache_hits": 36, "cache_misses": 12}
    console = Console(width=160, record=True, file=io.StringIO())
    print_result(console, sweep_result, directory.path)
    text = console.export_text()
    rows = [line.split("│")[1:] for line in text.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["001", "004", "002", "003"]
    assert [cell.strip() for cell in rows[2]] == [
        "002",
        "0",
        "0.5",
        "0.4500",
        "10.450",
        "2",
        "1:00",
        "stopped early",
        "",
    ]
    assert f"{trials[2].name} failed: the <engine> broke" in text
    assert "36 of 48 payloads from the cache" in text


def test_the_page_loads_nothing_and_shows_every_trial_and_setting(
    study: Study, directory: SweepDirectory, trials: list[Trial]
) -> None:
    write_page(SweepResult.of(study, directory.outcomes()), directory.path)
    text = (directory.path / "report.html").read_text()
    assert not re.search(r"https?://|<link|\bsrc=|@import", text)
    for trial in trials:
        assert f'<a href="{trial.name}/report.html">{trial.number:03d}</a>' in text
    assert "the &lt;engine&gt; broke" in text
    assert "<engine>" not in text
    assert "best 1 in 2 go on" in text  # asha's rungs over the steps
    cells = re.findall(r'class="cell[^"]*" data-trial="(\d)"[^>]*>([\d.]+)<', text)
    assert cells == [("1", "0.1500"), ("2", "0.4500"), ("4", "0.2500")]  # λ by rows, β by columns; the third failed
    assert "2 of 4 trials had ended" in html.unescape(text)


def test_a_page_can_be_written_before_anything_is_known(study: Study, directory: SweepDirectory) -> None:
    write_page(SweepResult.of(study, directory.outcomes()), directory.path)
    directory.begin(study.planned_trials()[0])
    write_page(SweepResult.of(study, directory.outcomes()), directory.path)
    assert "0 of 4 trials had ended" in (directory.path / "report.html").read_text()


def test_a_trial_takes_over_where_another_started_if_that_is_where_it_would(
    study: Study, directory: SweepDirectory
) -> None:
    first, second, *_ = study.planned_trials()
    source = RunDirectory(study.trial_config(first))
    start = source.path / "start"
    start.mkdir()
    (start / "arms.json").write_text(json.dumps({"GPTQ INT4": asdict(fidelity(0.5))}))
    (start / "weights.safetensors").write_bytes(b"weights")
    own = RunDirectory(study.trial_config(second))
    reuse_start(study.trial_config(second), own)
    assert (own.path / "start" / "weights.safetensors").read_bytes() == b"weights"
    (event,) = [json.loads(line) for line in own.metrics.read_text().splitlines()]
    assert (event["event"], event["step"], event["arm"], event["kl_to_teacher"]) == ("eval", 0, "GPTQ INT4", 0.5)
    other = study.trial_config(Trial(number=9, settings={**first.settings, "quant.rule": "absmax"}))
    alone = RunDirectory(other)
    reuse_start(other, alone)
    assert not (alone.path / "start").exists()
    for opened in (source, own, alone):
        opened.close()


def test_a_trial_that_never_began_is_unknown_rather_than_an_error(tmp_path: Path) -> None:
    outcome = read_outcome(Trial(number=1, settings={"a": 1}), tmp_path)
    assert (outcome.state, outcome.step, outcome.last) == ("unfinished", 0, None)


def test_a_trial_s_configuration_is_a_run_of_its_own(study: Study) -> None:
    trial = study.planned_trials()[1]
    run = study.trial_config(trial)
    assert run.run_dir == study.base.run_dir / trial.name
    assert (run.distill.lmbda, run.distill.beta, run.eval.every) == (0.0, 0.5, 2)
    assert to_toml(run).count("name = ") == 2  # the run's and the model's


def test_why_a_trial_failed_is_told_and_kept(study: Study, directory: SweepDirectory, tmp_path: Path) -> None:
    from ray import cloudpickle
    from ray.exceptions import RayTaskError

    from rayqd.console.progress import Progress
    from rayqd.errors import DataError
    from rayqd.sweep.callback import SweepCallback

    file = tmp_path / "error.pkl"
    file.write_bytes(cloudpickle.dumps(RayTaskError("step", "traceback", DataError("row 3\n is broken"))))  # pyright: ignore[reportPrivateImportUsage]
    output = io.StringIO()
    callback = SweepCallback(Progress(Console(file=output, width=200), 8), directory, study, num_ended=0)
    trial = study.planned_trials()[0]

    class Failed:
        config = callback.begin(trial)
        pickled_error_file = str(file)

    callback.on_trial_error(trial=Failed)
    assert directory.errors() == {1: "row 3 is broken"}
    assert f"{trial.name} failed: row 3 is broken  (1 of 4 done)" in output.getvalue()


@pytest.mark.parametrize(
    ("values", "middle"),
    [
        ([1e-4, 1e-3, 1e-2], 0.5),
        ([3e-4, 6e-4, 3e-3], math.log(2) / math.log(10)),
        ([0.0, 0.25, 1.0], 0.25),
        ([1, 2, 3], 0.5),
    ],
)
def test_a_list_lies_on_the_axis_that_it_is_spread_on_more_evenly(values: list[float], middle: float) -> None:
    axis = setting_axis("lr", values)
    assert [position(axis, value) for value in values] == pytest.approx([0, middle, 1])
