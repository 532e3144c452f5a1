"""A run's directory and its storage become one run, or say why they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayqd.errors import RunError, StorageError
from rayqd.runs.config_file import load_run_config
from rayqd.runs.directory import RunDirectory
from rayqd.runs.result_file import DistillResult
from rayqd.runs.storage.fetch import fetch_run
from tests.example_events import arm_result, step_event

TEACHER = arm_result("teacher", 0.0)
RESULT = DistillResult(name="tiny", rows=(TEACHER,), seconds={"total": 1.0}, start_seconds={}, num_steps=3)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def make(tiny_config: Any, store: Path) -> Any:
    return lambda **sections: tiny_config(storage=f"file://{store}", **sections)


def begun(config: Any, steps: int = 3) -> None:
    """A run that has done some steps and was stopped."""
    run_dir = RunDirectory(config)
    for step in range(1, steps + 1):
        run_dir.append(step_event(step), 0.0)
    run_dir.upload()
    run_dir.close()


def test_table_and_drawings_lie_in_the_storage_as_they_do_here(make: Any, store: Path) -> None:
    config = make()
    run_dir = RunDirectory(config)
    run_dir.finish(RESULT)
    files = {"result.md": "| teacher |", "figures/loss.svg": "<svg/>", "figures/kl.svg": "<svg></svg>"}
    (run_dir.path / "figures").mkdir()
    for name, text in files.items():
        (run_dir.path / name).write_text(text)
    run_dir.upload(export=True)
    run_dir.close()
    assert {name: (store / config.name / name).read_text() for name in files} == files


def test_an_empty_machine_gets_metrics_and_result_of_the_run(make: Any) -> None:
    config = make()
    begun(config)
    shutil.rmtree(config.run_dir)
    again = RunDirectory(config)
    assert again.metrics.read_text().count("\n") == 3
    assert again.result is None
    again.finish(RESULT)
    again.upload()
    again.close()
    shutil.rmtree(config.run_dir)
    assert RunDirectory(config).result == RESULT


def test_a_directory_that_knows_more_steps_than_the_storage_keeps_them(make: Any) -> None:
    config = make()
    begun(config)
    run_dir = RunDirectory(config)
    run_dir.append(step_event(4), 0.0)
    run_dir.close()
    assert RunDirectory(config).metrics.read_text().count("\n") == 4


def test_another_configuration_is_refused_with_the_difference_and_leaves_no_trace(make: Any, store: Path) -> None:
    begun(make())
    before = (store / "tiny" / "config.toml").read_text()
    shutil.rmtree(make().run_dir)
    other = make(learner={"lr": 2e-3})
    with pytest.raises(RunError, match=rf"^file://{store}/tiny belongs .*\(learner.lr: 0.001 -> 0.002\)"):
        RunDirectory(other)
    assert (store / "tiny" / "config.toml").read_text() == before
    assert [path.name for path in other.run_dir.iterdir()] == [".lock", "lease.json"]


def test_what_has_not_begun_may_still_change(make: Any, store: Path) -> None:
    RunDirectory(make()).close()
    other = make(learner={"lr": 2e-3})
    RunDirectory(other).close()
    assert load_run_config(store / "tiny" / "config.toml") == other


def test_what_the_teacher_wrote_is_a_beginning_and_goes_to_an_empty_machine(make: Any, store: Path) -> None:
    run_dir = RunDirectory(make())
    run_dir.upload()  # nothing is written yet
    assert not (store / "tiny" / "teacher.jsonl").exists()
    (run_dir.path / "teacher.jsonl").write_text('{"row": 1}\n{"row": 2}\n')
    run_dir.upload()
    run_dir.close()
    other = make(rollout={"temperature": 0.5})
    with pytest.raises(RunError, match=r"\(rollout.temperature: 1.0 -> 0.5\)"):
        RunDirectory(other)
    shutil.rmtree(other.run_dir)
    with pytest.raises(RunError, match=r"\(rollout.temperature: 1.0 -> 0.5\)"):
        RunDirectory(other)
    again = RunDirectory(make())
    assert (again.path / "teacher.jsonl").read_text().count("\n") == 2


def test_two_runs_of_one_name_are_not_mixed(make: Any, store: Path, tmp_path: Path) -> None:
    begun(make())
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    shutil.move(store, tmp_path / "older")
    begun(make())
    shutil.rmtree(store)
    shutil.move(tmp_path / "older", store)
    with pytest.raises(RunError, match=rf"runs/tiny and file://{store}/tiny hold different runs of the same name"):
        RunDirectory(make())


def test_a_run_that_began_without_storage_goes_on_with_it(tiny_config: Any, make: Any, store: Path) -> None:
    begun(tiny_config())
    assert not store.exists()
    begun(make(), steps=0)
    assert (store / "tiny" / "metrics.jsonl").read_text().count("\n") == 3
    assert (store / "tiny" / "run-id").read_text() == (make().run_dir / "run-id").read_text()


def test_a_storage_that_cannot_be_written_is_told_before_anything_is_done(tiny_config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_config(storage=f"{tmp_path}/file")
    with pytest.raises(StorageError, match=rf"^{tmp_path}/file/tiny: cannot be used as storage: "):
        RunDirectory(config)
    assert not (config.run_dir / "config.toml").exists()


SOURCES = '[[data.sources]]\nfilter = "os:system"'


def test_a_stored_run_is_fetched_for_the_commands_that_look_at_it(make: Any, store: Path, tmp_path: Path) -> None:
    begun(make())
    stored = RunDirectory(make())._stored
    assert stored
    for part, steps in (("export", [""]), ("start", [""]), ("checkpoints", ["/step-999999", "/step-1000000"])):
        for step in steps:
            (tmp_path / "made").mkdir()
            (tmp_path / "made" / "file").write_text(part + step)
            stored.folder.put(tmp_path / "made", part + step)
            shutil.rmtree(tmp_path / "made")
    run_dir = fetch_run(f"file://{store}/tiny", tmp_path / "cache", ["export"])
    assert {path.name for path in run_dir.iterdir() if path.name[0] != "."} == {"config.toml", "export"}
    run_dir = fetch_run(f"file://{store}/tiny", tmp_path / "cache", ["start", "checkpoints"])
    assert (run_dir / "start" / "file").read_text() == "start"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-1000000"]
    with pytest.raises(StorageError, match=r"/store/other: is no stored run: it has no config.toml"):
        fetch_run(f"file://{store}/other", tmp_path / "cache", ["export"])


def test_a_stored_run_whose_settings_name_code_is_not_fetched(make: Any, store: Path, tmp_path: Path) -> None:
    RunDirectory(make()).close()
    config = store / "tiny" / "config.toml"
    text = config.read_text()
    for key, line in (("data.reader", '[data]\nreader = "os:system"'), ("data.sources.filter", SOURCES)):
        config.write_text(f'name = "a:b"\n{line}\n')
        with pytest.raises(RunError, match=rf"/config.toml names code to run \({key}=os:system\): where you trust"):
            fetch_run(f"file://{store}/tiny", tmp_path / "cache", ["export"])
    config.write_text(text)
    fetch_run(f"file://{store}/tiny", tmp_path / "cache", ["export"])


def test_an_export_that_is_stored_anew_is_fetched_anew_and_no_other(make: Any, store: Path, tmp_path: Path) -> None:
    begun(make())
    stored = RunDirectory(make())._stored
    assert stored

    def put_and_fetch(text: str) -> Path:
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "file").write_text(text)
        stored.folder.put(tmp_path / "made", "export")
        return fetch_run(f"file://{store}/tiny", tmp_path / "cache", ["export"]) / "export" / "file"

    assert put_and_fetch("of 100 steps").read_text() == "of 100 steps"
    file = put_and_fetch("of 200 steps")
    assert file.read_text() == "of 200 steps"
    before = file.stat().st_mtime_ns, file.stat().st_ino
    assert put_and_fetch("of 200 steps") == file
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
