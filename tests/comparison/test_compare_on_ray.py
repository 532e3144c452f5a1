"""A whole comparison of the tiny model, killed in the middle: real runs, off-policy, so without an engine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rayqd.cli import main
from tests.report.chromium import EXECUTABLE, check_page, chromium

pytestmark = [pytest.mark.slow, pytest.mark.ray]

REPOSITORY = Path(__file__).parents[2]
FILE = """
name = "tiny"
runs_dir = "{directory}/runs"
model.name = "{model}"
quant = {{group_size = 64, init = "rtn", calibration_tokens = 256}}
adapter.rank = 4
data = {{source = "{data}", max_length = 128, min_room = 8}}
eval = {{source = "{directory}/heldout.jsonl", num_rows = 12, continuations = 11}}
rollout = {{min_new_tokens = 4, max_new_tokens = 12}}
distill.beta = 0.0
learner = {{steps = 4, batch_size = 2}}
checkpoint.every = 2

[compare]
seeds = [0]
margin = 1e-6
max_concurrent = 1

[compare.arms]
off-policy = {{learner.lr = 1e-3}}
fast = {{kind = "distill", distill.lmbda = 0.0, learner.lr = 3e-3}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Path:
    directory = tmp_path_factory.mktemp("compare")
    rows = [{"prompt": f"Say {letter * 4}!", "completion": f"{letter * 9}."} for letter in "abcdefghijklmnop"]
    (directory / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "tiny.toml").write_text(FILE.format(directory=directory, model=tiny_model, data=tiny_data))
    return directory / "tiny.toml"


def test_a_comparison_killed_in_the_middle_ends_with_each_run_once_and_the_same_table(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = file.parent / "runs" / "tiny"
    killed_after_one_arm(file, directory)
    kept = {path: path.stat().st_mtime_ns for path in directory.glob("*/result.json")}
    finished = subprocess.run(
        [sys.executable, "-m", "rayqd", "compare", f"@{file}", "--price", "3.6"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "COLUMNS": "60"},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    shown = [
        line
        for line in finished.stdout.split("\n\n")[-1].splitlines()
        if str(directory) not in line and not line.startswith("not shown in 60 columns: ")
    ]
    assert max(map(len, shown)) <= 60
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    result = json.loads((directory / "compare.json").read_text())
    names = [run["name"] for arm in result["arms"] for run in arm["runs"]]
    assert sorted(names) == sorted(path.parent.name for path in directory.glob("*/result.json"))
    assert names == ["rtn", "off-policy-seed=0-steps=4", "fast-seed=0-steps=4"]
    arms_agree_with_their_runs(result, directory)
    costs_add_up(result)
    measured = each_student_was_measured_along_its_own_text(result, directory)

    if EXECUTABLE:
        pages_open_in_a_browser(directory, file.parent / "profile")

    before = (directory / "compare.json").read_text()
    monkeypatch.chdir(REPOSITORY)
    assert main(["compare", f"@{file}", "--price", "3.6"]) == 0
    assert "has finished already" in capsys.readouterr().out
    assert (directory / "compare.json").read_text() == before
    assert {path: path.stat().st_mtime_ns for path in measured} == measured
    refuses_what_is_another(file, capsys)


def killed_after_one_arm(file: Path, directory: Path) -> None:
    """Kill the comparison once an arm has trained to its end and another one has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rayqd", "compare", f"@{file}"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 400
    while not (any(directory.glob("*steps=4/result.json")) and len(list(directory.glob("*steps=4/config.toml"))) > 1):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def arms_agree_with_their_runs(result: dict[str, Any], directory: Path) -> None:
    """The mean over the seeds is that of the runs' own results, which are weighted by tokens, the same for all."""
    for arm in result["arms"]:
        row = 1 if arm["kind"] == "rtn" else -1
        own = [json.loads((directory / run["name"] / "result.json").read_text())["rows"][row] for run in arm["runs"]]
        mean = sum(each["kl_to_teacher"] for each in own) / len(own)
        assert arm["kl_to_teacher"]["value"] == pytest.approx(mean, rel=1e-5)
    rtn = result["arms"][0]
    assert rtn["recovered"]["value"] == 0
    fast = result["arms"][-1]
    assert fast["recovered"]["value"] == pytest.approx(
        1 - fast["kl_to_teacher"]["value"] / rtn["kl_to_teacher"]["value"], rel=1e-6
    )


def each_student_was_measured_along_its_own_text(result: dict[str, Any], directory: Path) -> dict[Path, int]:
    assert result["own_text"]["num_prompts"] == 11
    assert result["own_text"]["errors"] == {}
    assert " than off-policy" in result["own_text"]["verdict"]
    times: dict[Path, int] = {}
    for arm in result["arms"]:
        file = directory / arm["runs"][0]["name"] / "eval" / "own-text.json"
        rows = json.loads(file.read_text())["by_row"]
        assert all(1 <= number <= 12 for number in rows["num_tokens"])
        assert arm["own_text"]["kl_to_teacher"]["value"] == pytest.approx(sum(rows["kl"]) / sum(rows["num_tokens"]))
        times[file] = file.stat().st_mtime_ns
    return times


def costs_add_up(result: dict[str, Any]) -> None:
    for arm in result["arms"]:
        cost = arm["cost"]
        assert sum(cost["parts"].values()) == pytest.approx(cost["seconds"], abs=0.05)
        assert cost["money"] == pytest.approx(cost["accelerator_seconds"] / 1000, abs=1e-3)  # 3.6 an hour
        for role in cost["roles"].values():
            assert role["busy_seconds"] + role["idle_seconds"] == pytest.approx(cost["seconds"], abs=0.3)
    trained = result["arms"][-1]["cost"]
    assert set(trained["roles"]) == {"teacher", "learner"}
    assert trained["steps"] == 4
    assert trained["roles"]["learner"]["tokens"] >= trained["trained_tokens"] > 0


def pages_open_in_a_browser(directory: Path, profile: Path) -> None:
    with chromium(profile) as browser:
        assert check_page(browser, directory / "compare.html") == ["KL to teacher over tokens", "Quality against cost"]
        titles = check_page(browser, directory / "fast-seed=0-steps=4" / "report.html")
    assert {"Error by layer, round-to-nearest INT4", "Error by layer, distilled INT4"} <= set(titles)
    drawn = {file.stem for file in (directory / "fast-seed=0-steps=4" / "figures").glob("*.svg")}
    assert drawn == {re.sub(r"[^a-z0-9]+", "-", title.lower()) for title in titles}
    rounded, trained = json.loads((directory / "fast-seed=0-steps=4" / "result.json").read_text())["rows"][1:]
    assert len(rounded["layer_errors"]) == 14
    assert rounded["layer_errors"].keys() == trained["layer_errors"].keys()
    assert all(error > 0 for error in rounded["layer_errors"].values())
    assert rounded["layer_errors"] != trained["layer_errors"]


def refuses_what_is_another(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"@{file}", "--adapter.rank", "8"]) == 1
    assert "belongs to another configuration (adapter.rank: 4 -> 8)" in capsys.readouterr().err
    text = file.read_text()
    file.write_text(text.replace("learner.lr = 3e-3", "learner.lr = 4e-3"))
    assert main(["compare", f"@{file}"]) == 1
    error = capsys.readouterr().err
    assert "fast-seed=0-steps=4 belongs to another configuration (learner.lr: 0.003 -> 0.004)" in error
    file.write_text(text)
