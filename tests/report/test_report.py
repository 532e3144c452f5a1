"""The report of a run: numbers where they belong, drawings where the points are, one file and nothing beside it."""

import datetime
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from pydantic import TypeAdapter

from rayqd.config import Config, load_config
from rayqd.config.sections import CheckpointConfig
from rayqd.events import EvalEvent, StepEvent
from rayqd.report.axis import format_ticks, round_ticks
from rayqd.report.chart import Line, draw_line_chart
from rayqd.report.curves import run_charts
from rayqd.report.run import Run, run_page
from rayqd.runs.environment import Environment
from rayqd.runs.result_file import parse_result
from tests.example_events import eval_event, step_event, task_value

MADE = datetime.datetime(2026, 11, 23, 9, 5, tzinfo=datetime.UTC)
ENVIRONMENT = {
    "versions": {"python": "3.11.7", "rayqd": "0.1.0"},
    "machine": {"processor": "AMD <EPYC>", "cores": 2, "memory_gib": 23.5, "system": "Linux"},
    "cluster": {"nodes": 3, "cpus": 24.0, "gpus": 2.0, "accelerators": ["H100"]},
}
DENSE = {"bits_per_weight": 16.0, "size_bytes": 269_100_000, "num_tokens": 6011}
SMALL = {"bits_per_weight": 4.25, "size_bytes": 113_200_000, "num_tokens": 6011}
ROWS = [
    {"arm": "teacher", "kl_to_teacher": 0.0, "top1_agreement": 1.0, "perplexity": 18.457, **DENSE},
    {"arm": "round-to-nearest INT4", "kl_to_teacher": 0.4, "top1_agreement": 0.752, "perplexity": 22.035, **SMALL},
    {"arm": "GPTQ INT4", "kl_to_teacher": 0.2, "top1_agreement": 0.81, "perplexity": 20.257, **SMALL},
    {"arm": "distilled INT4", "kl_to_teacher": 0.15, "top1_agreement": 0.832, "perplexity": 19.099, **SMALL},
]
RESULT = {"name": "mine", "rows": ROWS, "seconds": {"total": 451.0}, "num_steps": 4, "environment": ENVIRONMENT}


def step(number: int, **changed: Any) -> StepEvent:
    """The learner works three seconds and waits one, in which a rollout worker is busy half the time."""
    usual = {"num_on_policy": 2, "wait_seconds": 1.0, "learner_seconds": 3.0, "loss": 1 / number}
    return step_event(number, **{**usual, "rollout_seconds": 0.5, "teacher_seconds": 0.2, **changed})


def evaluation(number: int, row: dict[str, Any], arm: str = "") -> EvalEvent:
    measured = {name: row[name] for name in ("top1_agreement", "perplexity", "num_tokens")}
    return eval_event(arm or row["arm"], row["kl_to_teacher"], number, **measured)


EVENTS = [evaluation(0, ROWS[1]), evaluation(0, ROWS[2]), *(step(i) for i in range(1, 5))]
CONFIG = Config.model_validate(
    {
        "name": "mine",
        "runs_dir": Path("/somewhere/runs"),
        "model": {"name": "smollm2-135m"},
        "quant": {"group_size": 64},
        "learner": {"steps": 4},
    }
)


def report(**changed: Any) -> str:
    fields: dict[str, Any] = {
        "config": CONFIG,
        "command": "distill",
        "events": EVENTS,
        "result": RESULT,
        "environment": ENVIRONMENT,
        "made": MADE,
    }
    fields |= changed
    fields["environment"] = TypeAdapter(Environment).validate_python(fields["environment"])
    fields["result"] = parse_result(fields["result"]) if fields["result"] else None
    return run_page(Run(**fields))


def said(page: str) -> str:
    """What a reader sees of it, without style and script."""
    bare = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.DOTALL).replace("<wbr>", "")
    return " ".join(Markup(re.sub(r"<[^>]*>", " ", bare)).unescape().split())


def test_a_finished_run_is_told_with_its_numbers() -> None:
    text = said(report())
    assert "KL to teacher 0.1500 nats −25 % against GPTQ INT4" in text
    assert "113.2 MB 2.4 times smaller than the teacher" in text  # 269.1 / 113.2
    assert "Time 7:31 on 2 × H100" in text
    assert "round-to-nearest INT4 0.4000 75.2% 22.035 4.25 113.2 MB" in text
    assert "6,011 held-out tokens" in text
    assert "vllm serve /somewhere/runs/mine/export" in text
    assert "3 nodes, 24 CPUs" in text


def test_what_a_run_survived_stands_there_with_when_it_was() -> None:
    fault = {"seconds": 75.0, "step": 1234, "text": "rollout-1 died (<gone>)"}
    text = said(report(result={**RESULT, "faults": [fault]}))
    assert (
        "What went wrong, and was survived Of the last start. after step what 1:15 1,234 rollout-1 died (<gone>)"
        in text
    )
    assert "survived" not in said(report())


def test_a_run_that_ended_early_says_of_which_step_the_weights_are_and_draws_no_point_beyond() -> None:
    config = CONFIG.model_copy(update={"checkpoint": CheckpointConfig(best="kl_to_teacher")})
    best = [
        evaluation(number, {**ROWS[3], "kl_to_teacher": kl}, f"after step {number}")
        for number, kl in ((1, 0.15), (3, 0.17))
    ]
    result = {**RESULT, "num_steps": 3, "exported_step": 1, "reason": "kl_to_teacher was not better"}
    page = report(config=config, events=[*EVENTS, *best], result=result)
    text = said(page)
    assert "Training ended after step 3 of 4: kl_to_teacher was not better." in text
    assert "Exported are the weights after step 1 of 3, the best by KL to teacher." in text


def test_time_of_the_roles_is_a_share_of_the_steps() -> None:
    text = said(report())
    # 4 steps of 1 + 3 seconds; the rollout worker worked 4 · 0.5 of 16 seconds, 12.5 %
    assert "Of the 0:16 that the steps took" in text
    assert "rollout 0:02 · 12 %" in text
    assert "learner 0:12 · 75 %, waiting 25 %" in text
    parts = {"start": 100.0, "learner": 12.0, "waiting": 4.0, "between steps": 0.0, "end": 335.0}  # of 451
    text = said(report(result=RESULT | {"parts": parts}))
    assert "start 1:40 · 22 % learner 0:12 · 3 % waiting 0:04 · 1 % between steps 0:00 · 0 % end 5:35 · 74 %" in text
    two = CONFIG.model_copy(update={"rollout": CONFIG.rollout.model_copy(update={"num_workers": 2})})
    assert "rollout 0:01 · 6 %" in said(report(config=two))


def test_a_run_under_way_says_how_far_it_is_and_promises_no_export() -> None:
    events = [
        *EVENTS,
        evaluation(2, ROWS[3], "after step 2"),
        evaluation(4, ROWS[3], "after step 4"),
    ]
    text = said(report(result=None, events=events))
    assert "Not finished: step 4 of 4 when this page was written" in text
    assert "after step 4 0.1500" in text
    assert "after step 2" not in text
    assert "vllm serve" not in text
    assert "Not finished: step 0 of 4" in said(report(result=None, events=[]))


def test_the_students_completions_have_their_curves_where_it_wrote_any() -> None:
    titles = ("Length of what the student writes", "Cut at rollout.max_new_tokens")
    written = [step(i, mean_completion_tokens=80.0 + i, cut_share=0.25) for i in range(1, 5)]
    assert all(title in said(report(events=written)) for title in titles)
    assert not any(title in said(report()) for title in titles)


def test_quantizing_has_no_training_to_show() -> None:
    text = said(report(command="quantize", events=EVENTS[:2], result=RESULT | {"rows": ROWS[:3]}))
    assert "smollm2-135m in INT4 in groups of 64, without training" in text
    assert "−50 % against round-to-nearest INT4" in text
    assert "Where the time went" not in text
    assert "learner.steps = 4" not in text.partition("Every setting")[0]


def test_settings_stand_beside_their_defaults_and_the_command_gives_them_back() -> None:
    page = report()
    assert "quant.group_size 64 128" in said(page)
    flags = Markup(re.findall(r"<pre><code>(rayqd distill[^@]*?)</code></pre>", page)[0]).unescape()
    again = load_config(shlex.split(flags.replace("\\\n", ""))[2:])
    assert again == CONFIG.model_copy(update={"runs_dir": again.runs_dir})


def test_page_needs_nothing_beside_itself() -> None:
    page = report()
    assert re.findall(r"""(?:src|href)=|url\(|@import|https?:""", page) == []
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_what_users_write_is_text_and_no_markup() -> None:
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"name": "<script>alert(1)</script>"})})
    page = report(config=config, environment=ENVIRONMENT | {"versions": {"rayqd": '"><img>'}})
    assert "<script>alert" not in page
    assert "<img>" not in page
    assert "AMD &lt;EPYC&gt;" in page


def test_points_are_drawn_where_they_are() -> None:
    """The plot reaches from (44, 176), the lowest tick at the first step, to (390, 10)."""
    drawn = draw_line_chart("Loss", [Line(name="a", points=[(0, 0.0), (5, 2.0), (10, 4.0)], colour=1)], from_zero=True)
    svg = ElementTree.fromstring(re.findall(r"<svg.*</svg>", drawn)[0])
    (curve,) = [path.get("d") for path in svg.iter("path")]
    assert curve == "M44 176L217 93L390 10"
    assert [text.text for text in svg.iter("text")][:5] == ["0", "1", "2", "3", "4"]
    assert svg.get("aria-label") == "Loss, last: a 4"


def test_long_curves_are_thinned_and_keep_their_peaks() -> None:
    points = [(i, 1.0) for i in range(5000)]
    points[3210] = (3210, 9.0)
    drawn = draw_line_chart("Loss", [Line(name="", points=points)])
    assert len(drawn) < 40_000
    path = re.findall(r' d="(.*?)"', drawn)[0]
    assert min(float(pair.split()[1]) for pair in path[1:].split("L")) == 26.6  # 9 between the ticks 0 and 10


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False),
    st.floats(1e-6, 1e6),
    st.booleans(),
)
def test_ticks_enclose_the_values_in_few_even_steps(low: float, span: float, from_zero: bool) -> None:
    found = round_ticks(low, low + span, from_zero=from_zero)
    assert 2 <= len(found) <= 8
    tolerance = 1e-6 * max(1.0, abs(low), span)
    assert found[0] <= low + tolerance
    assert found[-1] >= low + span - tolerance
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=tolerance)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0, 0.5, 1.0], ["0.0", "0.5", "1.0"]),
        ([0, 250, 500], ["0", "250", "500"]),
        ([0, 20_000], ["0k", "20k"]),
        ([0, 2.5e-4, 5e-4], ["0", "0.00025", "0.0005"]),
        ([0, 2e-6, 4e-6], ["0", "2e-6", "4e-6"]),
    ],
)
def test_ticks_are_written_alike(values: list[float], texts: list[str]) -> None:
    assert format_ticks(values) == texts


def test_a_benchmark_while_training_is_a_chart_with_its_intervals() -> None:
    events: list[StepEvent | EvalEvent] = [step_event(1), step_event(2)]
    for step, value in ((1, 0.25), (2, 0.5)):
        scores = (task_value("arc_easy", "acc", value), task_value("arc_easy", "acc_norm", value / 2, stderr=None))
        events.append(eval_event(f"after step {step}", 0.2, step, tasks=scores))
    (chart,) = [str(each) for each in run_charts(events, 2) if "arc_easy" in str(each)]
    assert "arc_easy, 64 documents" in chart
    assert "acc 0.500; acc_norm 0.250" in chart
    assert chart.count('class="whisker') == 2  # of acc alone: 1.96 standard errors of 0.1 to either side
    assert not [each for each in run_charts(events[:2], 2) if "documents" in str(each)]
