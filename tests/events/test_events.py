"""What a run leaves in its files is what every earlier version left there, to the key and its place in the line."""

import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
from pydantic import JsonValue

from rayqd.events import (
    Arm,
    ArmKind,
    ArmResult,
    EvalEvent,
    Event,
    FinishedEvent,
    QuarantineEvent,
    StepEvent,
    StoppedEvent,
    from_json,
    to_json,
)
from rayqd.metrics.fidelity import ByRow
from tests.example_events import eval_event, fidelity, step_event

# As the version before typed events left them.
STEP = (
    '{"event": "step", "step": 3, "loss": 0.11109848320484161, "grad_norm": 0.24091745913028717, "lr": 0.0002, '
    '"num_tokens": 1215, "num_loss_tokens": 700, "num_on_policy": 4, "staleness": 0, '
    '"wait_seconds": 5.619768659999977, "learner_seconds": 4.872744076999993, '
    '"learner_tokens_per_second": 249.34615502073325, "num_retries": 0, '
    '"num_quarantined": 0, "teacher_cache_hits": 0, "teacher_cache_misses": 4, "rollout_seconds": 4.921600990000002, '
    '"rollout_tokens_per_second": 47.54550409012331, "teacher_seconds": 0.6669102739999744, '
    '"teacher_tokens_per_second": 1821.8342817133548, "time": 1795813896.881637}'
)
EVAL = (
    '{"event": "eval", "step": 0, "arm": "GPTQ INT4", "kl_to_teacher": 0.15394655824728487, '
    '"total_variation": 0.1745287801495336, "top1_agreement": 0.801696889036766, "perplexity": 20.57582525988076, '
    '"num_tokens": 6011, "time": 1795813859.265923}'
)
QUARANTINE = (
    '{"event": "quarantine", "step": 2, "index": 1, "reason": "the engine wrote nothing", '
    '"on_policy": true, "policy_version": 1, "prompt_ids": [5, 6], '
    '"completion_ids": [7, 2], "time": 1795813859.5}'
)


@pytest.mark.parametrize(
    ("line", "kind"), [(STEP, StepEvent), (EVAL, EvalEvent), (QUARANTINE, QuarantineEvent)], ids=lambda part: ""
)
def test_a_line_of_an_earlier_version_is_read_and_written_as_it_was(line: str, kind: type) -> None:
    row: dict[str, JsonValue] = json.loads(line)
    event = from_json(row)
    assert isinstance(event, kind)
    assert json.dumps(to_json(event, 1795813859.5) | {"time": row["time"]}) == line


def test_fields_of_a_line_are_those_of_the_event() -> None:
    step, measured = from_json(json.loads(STEP)), from_json(json.loads(EVAL))
    assert isinstance(step, StepEvent)
    assert isinstance(measured, EvalEvent)
    assert (step.step, step.learner.loss, step.roles.teacher_cache_misses) == (3, 0.11109848320484161, 4)
    assert (measured.arm, measured.fidelity.num_tokens) == (Arm(kind=ArmKind.GPTQ, format="int4"), 6011)


def test_what_runs_did_not_measure_at_first_is_not_invented() -> None:
    row = json.loads(STEP)
    del row["num_quarantined"], row["teacher_cache_hits"], row["teacher_cache_misses"]
    step = from_json(row)
    assert isinstance(step, StepEvent)
    assert (step.roles.num_quarantined, step.roles.teacher_cache_hits) == (0, 0)
    row = json.loads(EVAL)
    del row["total_variation"], row["top1_agreement"]
    measured = from_json(row)
    assert isinstance(measured, EvalEvent)
    assert math.isnan(measured.fidelity.total_variation)
    assert measured.fidelity.kl_to_teacher == 0.15394655824728487


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"event": "eval", "step": 0, "arm": "GPTQ INT4"},
        json.loads(EVAL) | {"arm": "somebody"},
        json.loads(STEP) | {"loss": "low"},
        {"event": "finished", "rows": []},
    ],
)
def test_what_is_no_event_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        from_json(row)


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        (Arm(kind=ArmKind.TEACHER), "teacher"),
        (Arm(kind=ArmKind.RTN, format="int4"), "round-to-nearest INT4"),
        (Arm(kind=ArmKind.GPTQ, format="int4"), "GPTQ INT4"),
        (Arm(kind=ArmKind.AWQ, format="nvfp4"), "AWQ NVFP4"),
        (Arm(kind=ArmKind.DISTILLED, format="nf4"), "distilled NF4"),
        (Arm(kind=ArmKind.DISTILLED, step=8), "after step 8"),
    ],
)
def test_the_name_of_an_arm_is_made_from_its_kind_and_read_back(arm: Arm, name: str) -> None:
    assert arm.name == name
    assert Arm.from_name(name) == arm


def test_a_row_of_a_result_is_what_a_file_gives_back() -> None:
    """`Result.rows` of a run that has just ended is that of one read from its directory."""
    rows = ByRow(num_tokens=(20, 30), kl=(5.0, 7.5), agrees=(15, 22), nll=(40.0, 80.0))
    arm = Arm(kind=ArmKind.DISTILLED, format="int4")
    result = ArmResult(arm=arm, fidelity=replace(fidelity(0.25), by_row=rows), bits_by_kind={"linear": 4.25})
    assert json.loads(json.dumps(result.to_json())) == result.to_json()
    assert ArmResult.from_json(result.to_json()) == result


def test_a_row_of_a_result_has_the_keys_of_earlier_versions_and_its_kind() -> None:
    arm = Arm(kind=ArmKind.DISTILLED, format="int4")
    row = ArmResult(arm=arm, fidelity=fidelity(0.25), bits_per_weight=4.25, size_bytes=113_175_416)
    by_kind = replace(row, bits_by_kind={"linear": 4.25, "embedding": 16.0})
    assert ArmResult.from_json(by_kind.to_json()) == by_kind
    written = row.to_json()
    assert written == {
        "arm": "distilled INT4",
        "kind": "distilled",
        "kl_to_teacher": 0.25,
        "total_variation": 0.125,
        "top1_agreement": 0.75,
        "perplexity": 10.25,
        "num_tokens": 50,
        "bits_per_weight": 4.25,
        "size_bytes": 113_175_416,
    }
    assert ArmResult.from_json(written) == row
    without_kind = {key: value for key, value in written.items() if key != "kind"}
    assert ArmResult.from_json(without_kind) == row
    unexported = ArmResult(arm=arm, fidelity=fidelity(0.25))
    assert unexported.to_json().keys() == written.keys() - {"bits_per_weight", "size_bytes"}
    assert ArmResult.from_json(unexported.to_json()) == unexported


@pytest.mark.parametrize(
    "event",
    [
        step_event(3),
        eval_event("after step 8", 0.2, 8),
        StoppedEvent(step=None),
        FinishedEvent(rows=(), num_steps=8, exported_step=8),
    ],
    ids=lambda event: type(event).__name__,
)
def test_events_survive_the_trip_between_processes(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
