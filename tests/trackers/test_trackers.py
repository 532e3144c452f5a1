"""Runs in the libraries' own stores, read back by the libraries; whatever fails there, the run goes on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.events import samples
from rayqd.runs.result_file import DistillResult
from rayqd.trackers.outcome import outcome_of, track, tracked_run
from rayqd.trackers.tracker import Outcome, TrackedRun, series_name
from rayqd.trackers.trackers import Trackers, check_trackers
from tests.example_events import arm_result, eval_event, step_event

ROWS = (arm_result("teacher", 0.0), arm_result("round-to-nearest INT4", 0.5), arm_result("distilled INT4", 0.25))
RESULT = DistillResult(name="mine", rows=ROWS, seconds={"total": 9.0}, start_seconds={}, num_steps=2)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "runs" / "mine"
    run_dir.mkdir(parents=True)
    (run_dir / "report.html").write_text("<p>the page</p>")
    return Config.model_validate({"name": "mine", "runs_dir": str(tmp_path / "runs"), "learner": {"lr": 0.125}})


def track_a_run(config: Config, name: str) -> list[str]:
    """Two steps, an evaluation between them, and the end; returns what the user was told."""
    told: list[str] = []
    with track(config.model_copy(update={"track": [name]}), told.append) as trackers:
        trackers.record(step_event(1, loss=0.75))
        trackers.record(eval_event("after step 1", 0.375, 1))
        trackers.record(step_event(2, loss=0.5))
        trackers.finish(outcome_of(RESULT, config.run_dir))
    return told


def test_metrics_are_called_as_in_the_one_table() -> None:
    names = {
        series_name(sample)
        for event in (step_event(1), eval_event("after step 1", 0.5, 1))
        for sample in samples(event)
    }
    assert {"loss", "learning_rate", "tokens_per_second/rollout", "work_seconds/teacher"} <= names
    assert {"kl_to_teacher/student", "perplexity/student"} <= names


@pytest.mark.slow
def test_tensorboard_reads_its_event_files(config: Config) -> None:
    library: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert track_a_run(config, "tensorboard") == []
    events: Any = library.EventAccumulator(str(config.run_dir / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.75), (2, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("kl_to_teacher/student")] == [(1, 0.375)]
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert "learner.lr = 0.125" in texts["settings/text_summary"]
    assert "50 % of the damage is back" in texts["verdict/text_summary"]
    assert "| distilled INT4 | 0.25 |" in texts["result/text_summary"]


@pytest.mark.slow
def test_mlflow_reads_its_store_and_a_run_that_goes_on_is_the_same_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with track(config.model_copy(update={"track": ["mlflow"]}), print) as trackers:
        trackers.record(step_event(1, loss=0.9))  # and is stopped
    assert track_a_run(config, "mlflow") == []
    client = mlflow.MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "rayqd"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert run.data.params["learner.lr"] == "0.125"
    assert "50 % of the damage is back" in run.data.tags["verdict"]
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [
        (1, 0.9), (1, 0.75), (2, 0.5),
    ]  # fmt: skip
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"report.html", "table.json"}


@pytest.mark.slow
def test_wandb_keeps_an_offline_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert track_a_run(config, "wandb") == []
    (kept,) = (config.run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for expected in (b"kl_to_teacher/student", b"learner.lr", b"damage is back", b"result"):
        assert expected in content


@pytest.mark.slow
def test_trackio_keeps_a_run_in_its_own_store(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    assert track_a_run(config, "trackio") == []
    rows: list[Any] = []
    for file in (tmp_path / "trackio").rglob("rayqd*.db"):
        with sqlite3.connect(file) as database:
            rows += database.execute("select step, metrics from metrics order by step").fetchall()
    losses = [(step, json.loads(text)["loss"]) for step, text in rows if "loss" in json.loads(text)]
    assert losses == [(1, 0.75), (2, 0.5)]


class Recorded:
    """A tracker that remembers, and breaks at the step where it is told to."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self._breaks_at = breaks_at
        self.steps: list[int] = []
        self.outcomes: list[Outcome | None] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self._breaks_at:
            raise OSError("no route to the\nserver")
        self.steps.append(step)

    def finish(self, outcome: Outcome | None) -> None:
        self.outcomes.append(outcome)


def test_one_that_fails_is_named_once_and_the_others_go_on(config: Config) -> None:
    whole, broken = Recorded(), Recorded(breaks_at=2)

    def refuse(run: TrackedRun) -> Recorded:
        raise ValueError(f"no such project: {run.project}")

    libraries: dict[str, Callable[[TrackedRun], Any]] = {
        "whole": lambda _: whole, "broken": lambda _: broken, "refusing": refuse,
    }  # fmt: skip
    told: list[str] = []
    trackers = Trackers(list(libraries), tracked_run(config), told.append, libraries)
    for step in range(1, 5):
        trackers.record(step_event(step))
    trackers.finish(None)
    trackers.finish(None)
    assert sorted(told) == [
        "track: broken failed (OSError: no route to the server); the run goes on without it",
        "track: refusing failed (ValueError: no such project: rayqd); the run goes on without it",
    ]
    assert (whole.steps, whole.outcomes) == ([1, 2, 3, 4], [None])
    assert broken.steps == [1]


def test_what_is_missing_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rayqd.trackers.trackers.find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(ConfigError, match=r'mlflow is not installed: pip install "rayqd\[mlflow\]"'):
        check_trackers(["tensorboard", "mlflow"])
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="wandb has no key"):
        check_trackers(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])


def test_a_run_that_goes_on_has_the_same_id(config: Config) -> None:
    assert tracked_run(config).run_id == tracked_run(config).run_id
