"""The table of metrics, and what is made from it without Ray: samples, the terminal's line, the Grafana dashboard."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from rayqd.cli import main
from rayqd.console.progress import eval_line, step_line
from rayqd.events import Arm, ArmResult, CheckpointEvent, FinishedEvent, StepEvent, from_json, samples, to_json
from rayqd.metrics.catalogue import METRICS, Metric, metric
from rayqd.metrics.grafana import dashboard
from tests.example_events import eval_event, fidelity, step_event, task_value

STEP = step_event(
    12,
    loss=0.15321,
    lr=6e-4,
    staleness=1,
    wait_seconds=2.5,
    learner_seconds=5.0,
    learner_tokens_per_second=180.0,
    rollout_tokens_per_second=340.4,
    teacher_tokens_per_second=1890.0,
)


def with_roles(**changed: Any) -> StepEvent:
    return replace(STEP, roles=replace(STEP.roles, **changed))


def test_a_step_is_a_sample_of_each_metric_by_role() -> None:
    found = {(s.metric.name, s.tags["role"]): s.value for s in samples(STEP)}
    assert found["loss", "learner"] == 0.15321
    assert found["tokens_per_second", "rollout"] == 340.4
    assert found["work_seconds", "teacher"] == 1.0
    assert found["wait_seconds", "learner"] == 2.5
    assert found["retries", "controller"] == 0
    assert not {"kl_to_teacher", "checkpoint_step"} & {name for name, _ in found}


def test_the_student_is_one_series_whatever_its_evaluations_are_called() -> None:
    assert {s.tags["arm"] for s in samples(eval_event("after step 8", 0.2, 8))} == {"student"}
    arms = [Arm.from_name(name) for name in ("teacher", "GPTQ INT4", "distilled INT4")]
    finished = FinishedEvent(
        rows=tuple(ArmResult(arm=arm, fidelity=fidelity(0.2)) for arm in arms), num_steps=1, exported_step=1
    )
    assert {s.tags["arm"] for s in samples(finished)} == {"teacher", "GPTQ INT4", "student"}


def test_ray_takes_every_metric_of_the_table() -> None:
    """Ray refuses names and texts, and counters that do not rise, where they are made or told: no cluster is needed."""
    from rayqd.actors.prometheus import MetricSeries

    series = MetricSeries("mine")
    for event in (STEP, with_roles(teacher_cache_hits=3, teacher_cache_misses=0, num_quarantined=1)):
        series.record(event)
    series.record(CheckpointEvent(step=12, path="somewhere"))


def test_terminal_line_shows_trouble_only_where_there_is_some() -> None:
    calm = "step 12/24  loss 0.1532  tok/s rollout 340 teacher 1,890 learner 180  staleness 1"
    assert step_line(STEP, 24, None) == calm
    assert step_line(with_roles(num_retries=2), 24, 80.0) == f"{calm}  retries 2  eta 1:20"
    off_policy = with_roles(rollout_tokens_per_second=None, num_quarantined=1)
    assert step_line(off_policy, 24, None).endswith("tok/s teacher 1,890 learner 180  staleness 1  quarantined 1")


def test_a_line_too_long_for_the_terminal_loses_what_matters_least() -> None:
    written = step_event(12, loss=0.15321, mean_completion_tokens=85.4, cut_share=0.125, staleness=1)
    whole = (
        "step 12/24  loss 0.1532  tok/s rollout 200 teacher 900 learner 150  length 85  cut 12%  staleness 1  eta 1:20"
    )
    assert step_line(written, 24, 80.0) == step_line(written, 24, 80.0, len(whole)) == whole
    assert step_line(written, 24, 80.0, len(whole) - 1) == whole.replace("  length 85", "")
    assert step_line(written, 24, 80.0, 90) == whole.replace("  length 85  cut 12%", "")
    assert step_line(written, 24, 80.0, 20) == whole.replace("  length 85  cut 12%  staleness 1", "")


def test_dashboard_has_a_panel_for_every_metric_and_no_panel_lies_on_another() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        cell
        for panel in panels
        for cell in product(
            range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"]),
            range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"]),
        )
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    queries = " ".join(target["expr"] for panel in panels for target in panel.get("targets", []))
    assert [each.name for each in METRICS if f"{each.series}{{" not in queries] == []


def test_counters_that_say_more_by_the_second_are_rates() -> None:
    by_title = {panel["title"]: panel["targets"][0]["expr"] for panel in dashboard()["panels"] if "targets" in panel}
    assert by_title["Workers at work"] == ('sum by (run, role) (rate(ray_rayqd_work_seconds_total{run=~"$run"}[5m]))')
    assert by_title["Retries"] == 'sum by (run, role) (ray_rayqd_retries_total{run=~"$run"})'
    assert metric("loss").series == "ray_rayqd_loss"


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    """Grafana's own types, from its SDK, read the JSON and write it again; what they do not know would be lost."""
    encoder, plugins, models = (
        pytest.importorskip(f"grafana_foundation_sdk.{name}", reason="comes with the dev extra")
        for name in ("cog.encoder", "cog.plugins", "models.dashboard")
    )
    plugins.register_default_plugins()
    written = dashboard()
    read = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(written)))
    assert lost(written, read) == []


def lost(left: Any, right: Any, place: str = "") -> list[str]:
    """Where `right` lacks something of `left`; more it may have."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            line for key, value in left.items() for line in lost(value, right.get(key, "missing"), f"{place}/{key}")
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [line for i, pair in enumerate(zip(left, right, strict=True)) for line in lost(*pair, f"{place}/{i}")]
    return [] if left == right else [place]


def test_dashboard_command_writes_a_file_or_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rayqd.json"
    assert main(["dashboard", "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    assert main(["dashboard"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text()) == dashboard()
    assert main(["dashboard", "--out", str(tmp_path / "no" / "rayqd.json")]) == 1
    assert "could not be written: No such file" in capsys.readouterr().err
    assert main(["dashboard", "extra"]) == 2


def test_documentation_lists_the_metrics_as_they_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `ray_rayqd_")] == [row(each) for each in METRICS]


def row(each: Metric) -> str:
    """As docs/dashboard.md has it: series, role, unit, what it is, from which fields of which event."""
    parts = {"arm": each.by_arm, "source": each.by_source, "task": each.by_task}
    roles = ", ".join([*each.fields, *(f"by {part}" for part, has_several in parts.items() if has_several)])
    fields = ", ".join(f"`{name}`" for name in each.fields.values())
    return f"| `{each.series}` | {roles} | {each.unit or '–'} | {each.help} | {fields} of `{each.event}` |"


def test_what_is_drawn_is_a_series_a_source() -> None:
    from rayqd.actors.prometheus import MetricSeries

    mixed = with_roles(sequences_by_source={"chat": 5, "code": 3})
    drawn = {s.tags["source"]: s.value for s in samples(mixed) if s.metric.name == "drawn_sequences"}
    assert drawn == {"chat": 5, "code": 3}
    assert not [s for s in samples(STEP) if "source" in s.tags]  # of one source
    MetricSeries("mixed").record(mixed)
    assert step_line(mixed, 24, None) == step_line(STEP, 24, None)
    assert from_json(to_json(mixed, 0.0)) == mixed
    assert "sequences_by_source" not in to_json(STEP, 0.0)
    (panel,) = [p for p in dashboard()["panels"] if p["title"] == "Sequences by source"]
    assert panel["targets"][0]["legendFormat"] == "{{run}} {{source}}"
    assert panel["targets"][0]["expr"].startswith("sum by (run, role, source) (")


def test_a_benchmark_while_training_is_a_series_a_metric() -> None:
    from rayqd.actors.prometheus import MetricSeries
    from rayqd.trackers.tracker import series_name

    scores = (
        task_value("arc_easy", "acc", 0.25),
        task_value("gsm8k", "exact_match", 0.5, filter="strict-match", num_answers=64, num_cut=3),
    )
    event = eval_event("after step 8", 0.2, 8, tasks=scores)
    drawn = [sample for sample in samples(event) if sample.metric.name == "benchmark"]
    assert {sample.tags["task"]: sample.value for sample in drawn} == {
        "arc_easy/acc": 0.25,
        "gsm8k/exact_match,strict-match": 0.5,
    }
    assert [series_name(sample) for sample in drawn] == [
        "benchmark/student/arc_easy/acc",
        "benchmark/student/gsm8k/exact_match,strict-match",
    ]
    assert not [s for s in samples(eval_event("after step 8", 0.2, 8)) if "task" in s.tags]
    MetricSeries("mine").record(event)
    assert from_json(to_json(event, 0.0)) == event
    assert "tasks" not in to_json(eval_event("after step 8", 0.2, 8), 0.0)
    assert eval_line(event).endswith(
        ", arc_easy/acc 0.250 ± 0.100 of 64, gsm8k/exact_match,strict-match 0.500 ± 0.100 of 64 (3 of 64 answers cut)"
    )
