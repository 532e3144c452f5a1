"""`audit.jsonl` is continued where a run goes on: no step twice, none lost, and the chain whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayqd.audit import Call, SequenceAudit, StepAudit, audit_step, chain
from rayqd.errors import RunError
from rayqd.runs.audit_file import AuditFile, read_audit

PLAN = {"num_examples": 10, "seed": 1, "shares": (0.5, 0.5)}


def audit(step: int) -> StepAudit:
    return StepAudit(step=step, drawn="0" * 16, wrote="data:1", scored="t0:1", tokens=f"{step:016x}")


def opened(tmp_path: Path, resumed_at: int = 0, **changed: Any) -> AuditFile:
    file = AuditFile(tmp_path / "audit.jsonl")
    file.begin(PLAN | changed)
    file.forget_after(resumed_at)
    return file


def steps(file: AuditFile) -> list[Any]:
    """Their numbers; the whole chain is computed anew."""
    found: list[Any] = []
    previous = ""
    for row in read_audit(file.path):
        assert row is not None
        assert row["chain"] == chain(previous, row)
        previous = str(row["chain"])
        found.append(row.get("step", "plan"))
    return found


def test_a_run_that_goes_on_continues_it_whatever_was_there(tmp_path: Path) -> None:
    opened(tmp_path).append([audit(step) for step in range(1, 8)])
    with (tmp_path / "audit.jsonl").open("ab") as stream:
        stream.write(b'{"step": 8, "dra')  # a killed process's
    file = opened(tmp_path, resumed_at=4)
    assert steps(file) == ["plan", 1, 2, 3, 4]
    file.append([audit(step) for step in range(3, 7)])  # the checkpoint's own come again
    assert steps(file) == ["plan", 1, 2, 3, 4, 5, 6]


def test_steps_that_the_driver_never_wrote_come_from_the_checkpoint(tmp_path: Path) -> None:
    opened(tmp_path).append([audit(1), audit(2)])
    file = opened(tmp_path, resumed_at=4)
    file.append([audit(step) for step in range(1, 5)])
    file.append([audit(5)])
    assert steps(file) == ["plan", 1, 2, 3, 4, 5]


def test_a_run_that_begins_anew_begins_it_anew(tmp_path: Path) -> None:
    opened(tmp_path).append([audit(1)])
    file = opened(tmp_path)
    assert file.path.stat().st_size == 0
    file.append([audit(1)])
    assert steps(file) == ["plan", 1]


def test_nothing_is_there_before_the_first_step(tmp_path: Path) -> None:
    assert not opened(tmp_path).path.exists()


def test_the_last_line_is_found_across_blocks(tmp_path: Path) -> None:
    num_steps = 1500  # of some 180 bytes: several blocks of 64 KiB
    opened(tmp_path).append([audit(step) for step in range(1, num_steps + 1)])
    assert (tmp_path / "audit.jsonl").stat().st_size > 3 << 16
    file = opened(tmp_path, resumed_at=17)
    file.append([audit(18)])
    assert steps(file) == ["plan", *range(1, 19)]


def test_another_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    opened(tmp_path).append([audit(1)])
    assert opened(tmp_path, resumed_at=1).append([audit(2)]) is None
    with pytest.raises(
        RunError, match=r"followed another plan \(num_examples 10, now 9\): the data is not what it was"
    ):
        opened(tmp_path, num_examples=9)


def test_damaged_lines_are_told_apart(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.append([audit(1), audit(2)])
    text = file.path.read_text().splitlines(keepends=True)
    file.path.write_text("".join([text[0], text[1].replace("data:1", "data:3"), text[2]]))
    assert [row is None for row in read_audit(file.path)] == [False, True, False]


def test_a_year_of_a_step_a_second_is_less_than_ten_gigabytes(tmp_path: Path) -> None:
    """With the default 8 sequences a step, half of them written by four rollout workers, and two teachers."""
    steps = 365 * 24 * 3600
    sequences = [
        SequenceAudit(
            index=index,
            example=999_999,
            version=None if index < 4 else steps - 2,
            tokens="f" * 16,
            wrote=Call(worker="data" if index < 4 else f"rollout-{index - 4}"),
            scored=Call(worker=f"teacher-{index % 2}"),
        )
        for index in range(8)
    ]
    step = audit_step(steps, sequences, 0)
    file = opened(tmp_path)
    file.append([replace(step, weights="f" * 16)])
    lines = file.path.read_bytes().splitlines(keepends=True)
    assert len(lines[-1]) * steps < 10e9
