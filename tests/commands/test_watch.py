"""`rayqd watch`: a run is followed to its end, and never touched."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from run_directories import finished_run, open_run, result_of

from rayqd.cli import main
from rayqd.commands.watch import watch
from rayqd.console.progress import step_line
from rayqd.errors import ModelError
from rayqd.events import to_json
from rayqd.runs.directory import RunDirectory
from rayqd.runs.ended import record_abnormal_exit
from rayqd.runs.record import is_running
from tests.example_events import eval_event, step_event

ROOT = Path(__file__).parents[2]
WATCH = """
import signal, sys
from rayqd.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, their children too
sys.exit(main(["watch", *sys.argv[1:]]))
"""


def watched(run: RunDirectory, acts: Iterator[Callable[[], object]]) -> tuple[int, list[str]]:
    """The watcher's exit code and lines; the run does one act after another between its looks."""
    output = io.StringIO()
    code = watch(run.path, Console(file=output, width=160), sleep=lambda seconds: next(acts)())
    return code, [line.rstrip() for line in output.getvalue().splitlines()]


def test_a_run_is_followed_from_its_first_row_to_its_result(tmp_path: Path) -> None:
    run = open_run(tmp_path, "one")
    run.append(eval_event("round-to-nearest INT4", 0.5), 0.0)

    def end() -> None:
        run.append(step_event(4), 0.0)
        run.finish(result_of("one", 0.125))
        run.close()

    def append(*steps: int) -> None:
        for step in steps:
            run.append(step_event(step), 0.0)

    acts = iter([lambda: append(1), lambda: append(2, 3), end])
    code, lines = watched(run, acts)
    assert code == 0
    expected = [step_line(step_event(step), 4, eta) for step, eta in ((1, 30.0), (2, 20.0), (3, 10.0), (4, 0.0))]
    assert lines[:6] == [
        "one: Qwen/Qwen3-4B-Instruct-2507 to INT4, groups of 64",
        "round-to-nearest INT4: KL to teacher 0.5000, perplexity 10.500",
        *expected,  # ten seconds a step
    ]
    assert any("distilled INT4" in line and "0.1250" in line for line in lines[6:])


def test_rows_that_a_resumed_run_keeps_are_shown_once(tmp_path: Path) -> None:
    run = open_run(tmp_path, "one")
    for step in (1, 2, 3):
        run.append(step_event(step), 0.0)
    # The checkpoint is of step 1: 2 and 3 are done again.
    acts = iter([lambda: run.forget_metrics_after(1), lambda: run.append(step_event(2), 0.0), run.close])
    _, lines = watched(run, acts)
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["1/4", "2/4", "3/4", "2/4"]


def test_a_row_is_shown_when_it_is_whole(tmp_path: Path) -> None:
    run = open_run(tmp_path, "one")
    whole = json.dumps(to_json(eval_event("GPTQ INT4", 0.25, perplexity=11.0), 0.0)) + "\n"

    def write(text: str) -> None:
        with run.metrics.open("a") as stream:
            stream.write(text)

    _, lines = watched(run, iter([lambda: write(whole[:30]), lambda: write(whole[30:]), run.close]))
    assert lines.count("GPTQ INT4: KL to teacher 0.2500, perplexity 11.000") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelError("no such model"), 1, "rayqd: error: no such model"),
        (KeyboardInterrupt(), 130, "rayqd: one at step 0 was stopped; its command goes on from the last checkpoint"),
    ],
)
def test_the_exit_code_and_the_last_line_are_those_of_the_run(
    error: BaseException, code: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(tmp_path, "one")

    def end() -> None:
        with pytest.raises(type(error)), record_abnormal_exit(run.path):
            raise error
        run.close()

    assert watched(run, iter([end]))[0] == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_run_that_was_killed_is_told_from_one_that_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(tmp_path, "one")
    assert watched(run, iter([run.close]))[0] == 1
    assert "has ended without a word" in capsys.readouterr().err


def test_a_finished_run_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished_run(tmp_path, "one", 0.125)
    assert main(["watch", str(path)]) == 0
    assert "distilled INT4" in capsys.readouterr().out


def test_ctrl_c_ends_the_watching_and_not_the_run(tmp_path: Path) -> None:
    run = open_run(tmp_path, "one")
    run.append(step_event(1), 0.0)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", WATCH, str(run.path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("step 1/4"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, f"rayqd: no longer watching {run.path}; what it does goes on\n")
    assert is_running(run.path)
    run.close()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ([], 2, "rayqd watch needs a run: rayqd watch runs/quickstart"),
        (["none"], 1, "there is no run none, neither a directory of that name nor one in runs: see `rayqd runs`"),
        (["."], 1, ". is no run's directory: it has no config.toml"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    code: int,
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *words]) == code
    assert capsys.readouterr().err == f"rayqd: error: {error}\n"
