"""result.json of every version and command is read back as what it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayqd.events import Arm, ArmKind
from rayqd.runs.environment import ClusterSize, Environment, Machine
from rayqd.runs.result_file import DistillResult, QuantizeResult, StoppedEarly, parse_result, read_result
from rayqd.runs.startup import Startup
from rayqd.spans import Span
from tests.example_events import arm_result

# As the version before `command` and `kind` left it.
DISTILL: dict[str, Any] = {
    "name": "bits",
    "rows": [
        {
            "arm": arm,
            "kl_to_teacher": kl,
            "total_variation": kl / 2,
            "top1_agreement": 1 - kl,
            "perplexity": 10 + kl,
            "num_tokens": 6011,
            "bits_per_weight": bits,
            "size_bytes": 113175416,
        }
        for arm, kl, bits in (("teacher", 0.0, 16), ("GPTQ INT4", 0.25, 4.25), ("distilled INT4", 0.125, 4.25))
    ],
    "seconds": {"total": 405.8, "rollout": 13.9, "teacher": 76.0, "learner": 17.5},
    "start_seconds": {"teacher-0": 37.2, "rollout-0": 234.9},
    "num_steps": 3,
    "export": "/runs/bits/export",
    "environment": {
        "versions": {"python": "3.11.7", "rayqd": "0.1.0"},
        "machine": {"processor": "Xeon", "cores": 2, "memory_gib": 23.5, "system": "Linux 6.18, x86_64"},
        "cluster": {"nodes": 1, "cpus": 2.0, "gpus": 0.0, "accelerators": []},
    },
}
QUANTIZE = {key: DISTILL[key] for key in ("name", "rows", "seconds", "export", "environment")} | {"method": "gptq"}
MACHINE = Machine(processor="Xeon", cores=None, memory_gib=1.5, system="Linux")
CLUSTER = ClusterSize(nodes=2, cpus=8.0, gpus=1.0, accelerators=("H100",))
WHOLE = DistillResult(
    name="mine",
    rows=(arm_result("teacher", 0.0), arm_result("distilled NF4", 0.25)),
    seconds={"total": 1.5},
    start_seconds={"teacher-0": 0.5},
    num_steps=4,
    export="s3://bucket/mine/export",
    environment=Environment(versions={"python": "3.11.7"}, machine=MACHINE, cluster=CLUSTER),
    startup=Startup(
        first_step=4.5,
        last_step=9.0,
        end=10.25,
        spans=(Span(role="driver", name="start Ray", start=0.5, end=2.0),),
    ),
)


@pytest.mark.parametrize(("content", "command"), [(DISTILL, "distill"), (QUANTIZE, "quantize")])
def test_an_earlier_version_s_file_is_read_and_only_gets_its_command_and_its_arms_kinds(
    content: dict[str, Any], command: str
) -> None:
    result = parse_result(content)
    written = json.loads(json.dumps(result.to_json()))
    assert written.pop("command") == result.command == command
    assert [row.pop("kind") for row in written["rows"]] == ["teacher", "gptq", "distilled"]
    assert written == content
    assert result.student.arm == Arm(kind=ArmKind.DISTILLED, format="int4")


@pytest.mark.parametrize(
    "result",
    [
        WHOLE,
        replace(WHOLE, export=None, stopped_early=StoppedEarly(step=2, of=8)),
        QuantizeResult(name="mine", rows=WHOLE.rows, seconds={"total": 1.5}, method="awq"),
    ],
    ids=["finished", "stopped early", "quantized"],
)
def test_what_is_written_is_read_back(result: DistillResult | QuantizeResult, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result.to_json()))
    assert read_result(tmp_path / "result.json") == result


@pytest.mark.parametrize("text", ["", "[1]", '{"name": "half', '{"name": "a-sweep", "trials": []}', '{"rows": [{}]}'])
def test_what_measures_no_arms_is_no_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    assert read_result(tmp_path / "result.json") is None
    assert read_result(tmp_path / "none.json") is None
