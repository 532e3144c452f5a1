"""What a real run exports, read where Prometheus would read it: at the endpoint of Ray's node."""

import functools
import io
import json
import os
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.commands.distill import distill
from rayqd.metrics.catalogue import metric
from rayqd.metrics.grafana import dashboard
from rayqd.rollout.fake import FakeEngine

pytest.importorskip("opentelemetry.exporter.prometheus", reason='Ray exports nothing without "ray[default]"')
pytestmark = [pytest.mark.slow, pytest.mark.ray]

Key = tuple[str, str, str]  # series, role, arm


class Scraper(threading.Thread):
    """Asks the endpoint for as long as the run takes, and keeps the values of rayqd's series."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.values: dict[Key, float] = {}  # the last of each
        self.together: set[str] = set()  # the series of the last answer that told of a step

    def run(self) -> None:
        import ray
        from prometheus_client.parser import text_string_to_metric_families

        while not self.done.wait(0.3):
            try:
                port = ray.nodes()[0]["MetricsExportPort"]
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2).read().decode()
            except (OSError, ray.exceptions.RaySystemError, IndexError):
                continue  # before the run has started Ray, or after it has ended it
            answer = [s for family in text_string_to_metric_families(text) for s in family.samples]
            ours = [sample for sample in answer if sample.labels.get("run") == "tiny"]
            self.values |= {(s.name, s.labels["role"], s.labels.get("arm", "")): s.value for s in ours}
            if names := {sample.name for sample in ours if sample.name.startswith("ray_rayqd_")}:
                self.together = names if "ray_rayqd_step" in names else self.together


def engine_that_dies_and_is_slow(calls: Path) -> Any:
    """Dies at its second call and thinks long about its fourth. Calls are counted in a file, which outlives it."""

    class Engine(FakeEngine):
        def generate(self, requests: Any) -> Any:
            with calls.open("a") as stream:
                stream.write("x")
            if calls.stat().st_size == 2:
                os._exit(1)
            if calls.stat().st_size == 4:
                time.sleep(4)
            return super().generate(requests)

    return functools.partial(Engine, 128)


@dataclass
class ScrapedRun:
    """A run whose rollout worker dies once and is slow once, and what it told meanwhile."""

    result: Any
    scraper: Scraper
    output: str


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, tiny_run_config: Any) -> ScrapedRun:
    scraper, output = Scraper(), io.StringIO()
    scraper.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # seconds are all that the run takes
        patch.setattr("rayqd.console.progress.INACTIVITY_SECONDS", (1.0, 600.0))
        make_engine = engine_that_dies_and_is_slow(tmp_path_factory.mktemp("engine") / "calls")
        result = distill(tiny_run_config, Console(file=output, width=160), make_engine=make_engine)
    scraper.done.set()
    scraper.join()
    return ScrapedRun(result, scraper, output.getvalue())


@pytest.fixture(scope="module")
def tiny_run_config(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Any:
    from rayqd.config import Config

    rows = tiny_data.read_text().splitlines(keepends=True)
    files = [tmp_path_factory.mktemp("sources") / name for name in ("many.jsonl", "few.jsonl")]
    for file, part in zip(files, (rows[:20], rows[20:]), strict=True):
        file.write_text("".join(part))
    text = files[0].with_name("text.txt")
    text.write_text("Say what you see, and see what you say! " * 4)
    sources = [{"source": str(file), "weight": weight} for file, weight in zip(files, (3, 1), strict=True)]
    return Config.model_validate(
        {
            "name": "tiny",
            "runs_dir": tmp_path_factory.mktemp("runs"),
            "model": {"name": str(tiny_model)},
            "quant": {"group_size": 64, "init": "rtn"},
            "adapter": {"rank": 4},
            "data": {"sources": sources, "max_length": 128, "min_room": 8},
            "eval": {"num_rows": 4, "every": 8, "text": str(text), "window": 64},
            "distill": {"lmbda": 0.5, "beta": 0.5},
            "rollout": {"min_new_tokens": 4, "max_new_tokens": 12, "max_concurrent": 8},
            "learner": {"steps": 24, "batch_size": 4, "lr": 1e-3},
            "checkpoint": {"every": 8},
        }
    )


def test_every_query_of_the_dashboard_names_a_series_that_the_run_exported(scraped: ScrapedRun) -> None:
    scraper = scraped.scraper
    exported = {name for name, _, _ in scraper.values}
    # Nothing is quarantined in this run, no benchmark run, and the fake engine has no log-probabilities to check.
    not_in_this_run = {metric(name).series for name in ("quarantined_sequences", "benchmark", "engine_error")}
    asked = {
        word
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
        for word in target["expr"].replace("{", " ").replace("(", " ").split()
        if word.startswith("ray_")
    }
    assert asked - not_in_this_run == exported
    assert {role for name, role, _ in scraper.values if name == "ray_rayqd_tokens_per_second"} == {
        "rollout",
        "teacher",
        "learner",
    }


def test_a_death_and_a_long_wait_are_told_while_they_last(scraped: ScrapedRun) -> None:
    lines = scraped.output.splitlines()
    (died,) = (place for place, line in enumerate(lines) if line.startswith("rollout-0 died ("))
    (back,) = (place for place, line in enumerate(lines) if line.startswith("rollout-0 is back after "))
    (second,) = (place for place, line in enumerate(lines) if line.startswith("step 2/24 "))
    (third,) = (place for place, line in enumerate(lines) if line.startswith("step 3/24 "))
    assert died < back < second < lines.index("step 3: waiting for rollout-0 for 1 s") < third


def test_an_evaluation_is_told_until_the_next(scraped: ScrapedRun) -> None:
    """Ray forgets a gauge that is told once; this run's first evaluation is older than that at its last step."""
    scraper = scraped.scraper
    assert {"ray_rayqd_kl_to_teacher", "ray_rayqd_learning_rate"} <= scraper.together


def test_exported_values_are_those_of_the_events(scraped: ScrapedRun) -> None:
    result, scraper = scraped.result, scraped.scraper
    events = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    seen = scraper.values
    last = steps[int(seen["ray_rayqd_step", "learner", ""]) - 1]
    assert seen["ray_rayqd_retries_total", "controller", ""] == last["num_retries"] >= 1
    evaluated = {event["arm"]: event["kl_to_teacher"] for event in events if event["event"] == "eval"}
    assert seen["ray_rayqd_kl_to_teacher", "learner", "round-to-nearest INT4"] == pytest.approx(
        evaluated["round-to-nearest INT4"]
    )
    assert ("ray_rayqd_kl_to_teacher", "learner", "student") in seen
    so_far = steps[: last["step"]]
    for role in ("rollout", "teacher", "learner"):
        worked = sum(step[f"{role}_seconds"] for step in so_far)
        assert seen["ray_rayqd_work_seconds_total", role, ""] == pytest.approx(worked, rel=1e-6)


def test_every_step_draws_from_the_sources_by_their_weights(scraped: ScrapedRun) -> None:
    events = [json.loads(line) for line in (scraped.result.run_dir / "metrics.jsonl").read_text().splitlines()]
    drawn = [list(event["sequences_by_source"].values()) for event in events if event["event"] == "step"]
    assert drawn == [[3, 1]] * 24


def test_the_run_left_a_report_of_itself(scraped: ScrapedRun) -> None:
    result = scraped.result
    page = (result.run_dir / "report.html").read_text()
    assert "Not finished" not in page
    for row in result.rows:
        assert row["arm"] in page
        assert f"{row['kl_to_teacher']:.4f}" in page
    kept = json.loads((result.run_dir / "result.json").read_text())["environment"]
    assert kept["versions"]["ray"] in page
    assert kept["cluster"]["nodes"] == 1


def test_logs_are_prefixed_with_run_role_and_rank(scraped: ScrapedRun) -> None:
    """Ray writes an actor's repr into its log: the prefix of its lines, the dashboard's Repr."""
    result = scraped.result
    logs = "".join(file.read_text() for file in (result.run_dir / "logs").glob("worker-*.out"))
    for name in ("RolloutWorker(tiny/rollout-0)", "TeacherWorker(tiny/teacher-0)", "Controller(tiny)"):
        assert f":actor_name:{name}\n" in logs
