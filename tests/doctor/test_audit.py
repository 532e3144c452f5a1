"""The record of a run is held against its plan: whatever is changed in it is found, and its step is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from rayqd.audit import DATA, Call, SequenceAudit, StepAudit, audit_step, chain, to_row
from rayqd.data import Plan
from rayqd.doctor.audit import Expected, Tally, find_faults

PLAN = Plan(num_examples=(10,), batch_size=4, lmbda=0.5, seed=3)  # 2.5 steps are an epoch, 2 of 4 sequences are written
NUM_STEPS = 6


def sequences(step: int, **changed: Any) -> list[SequenceAudit]:
    """What the plan has for `step`, counted from 1; the student writes with weights one version old."""
    return [
        SequenceAudit(
            index=s.index,
            example=s.example,
            version=max(0, step - 2) if s.on_policy else None,
            tokens=f"{step}.{s.index}",
            wrote=Call(worker=f"rollout-{s.index % 2}") if s.on_policy else Call(worker=DATA),
            scored=replace(Call(worker="teacher-0"), **changed),
        )
        for s in PLAN.step(step - 1)
    ]


def rows(steps: list[StepAudit]) -> list[dict[str, Any] | None]:
    """The file of these steps, sealed as if they had been written so."""
    header: dict[str, Any] = {"plan": asdict(PLAN)}
    written: list[dict[str, Any] | None] = [{**header, "chain": chain("", header)}]
    previous = chain("", header)
    for step in steps:
        written.append(row := to_row(step, previous))
        previous = str(row["chain"])
    return written


def good() -> list[StepAudit]:
    return [replace(audit_step(step, sequences(step)), weights=f"{step:016x}") for step in range(1, NUM_STEPS + 1)]


def faults(lines: list[dict[str, Any] | None], **expected: Any) -> list[str]:
    given = {"plan": PLAN, "max_staleness": 1, "num_steps": NUM_STEPS} | expected
    return [str(fault) for fault in find_faults(lines, Expected(**given), Tally())]


def test_a_run_as_planned_has_no_faults_and_is_counted() -> None:
    tally = Tally()
    expected = Expected(plan=PLAN, max_staleness=1, num_steps=NUM_STEPS, weights={6: f"{6:016x}"})
    assert list(find_faults(rows(good()), expected, tally)) == []
    assert (tally.num_steps, tally.num_sequences, tally.num_written) == (6, 24, 12)
    assert (tally.staleness, tally.num_checkpoints, tally.num_left_out) == (1, 1, 0)


def swapped(step: int) -> StepAudit:
    """Two sequences of the step have each other's rows."""
    first, second, *others = sequences(step)
    return audit_step(step, [replace(first, example=second.example), replace(second, example=first.example), *others])


def without(step: int, index: int) -> StepAudit:
    return audit_step(step, [s for s in sequences(step) if s.index != index])


def aged(step: int) -> StepAudit:
    """What the student wrote is two versions old."""
    return audit_step(step, [replace(s, version=None if s.version is None else step - 3) for s in sequences(step)])


def other_writer(step: int) -> StepAudit:
    """What the student should have written is the data's own."""
    changed = [replace(s, version=None, wrote=Call(worker=DATA)) for s in sequences(step)]
    return audit_step(step, changed)


Mutation = Callable[[list[StepAudit]], list[StepAudit]]
MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "a step is dropped": (lambda steps: steps[:2] + steps[3:], "step 3: it is missing"),
    "three are": (lambda steps: steps[:2] + steps[5:], "step 3: it is missing, and all up to step 5"),
    "the last one is": (lambda steps: steps[:-1], "step 6: it is missing"),
    "a step is done twice": (lambda steps: [*steps[:3], *steps[2:]], "step 3: it is there again, behind step 3"),
    "two rows are swapped": (
        lambda steps: [*steps[:2], swapped(3), *steps[3:]], "step 3: it trained on other rows than the plan draws",
    ),
    "a step has the rows of another": (
        lambda steps: [*steps[:2], replace(steps[3], step=3), *steps[3:]], "step 3: it trained on other rows",
    ),
    "a sequence is lost": (
        lambda steps: [*steps[:2], without(3, 2), *steps[3:]], "step 3: sequence 2 was not trained on, and quarantine",
    ),
    "a sequence is trained on twice": (
        lambda steps: [*steps[:2], replace(steps[2], wrote=steps[2].wrote + " r7@1:1"), *steps[3:]],
        "step 3: sequence 0 was trained on 2 times",
    ),
    "one is not in the plan": (
        lambda steps: [*steps[:2], replace(steps[2], scored=steps[2].scored + " t7:10"), *steps[3:]],
        "step 3: sequence 4 was scored, which is not in the plan",
    ),
    "weights are too old": (lambda steps: [*steps[:3], aged(4), *steps[4:]], "step 4: r"),
    "the data wrote for the student": (
        lambda steps: [*steps[:3], other_writer(4), *steps[4:]], "step 4: it trained on other rows than the plan",
    ),
    "a skipped step changed the weights": (
        lambda steps: [*steps[:3], replace(steps[3], skipped=True), *steps[4:]], "step 4: it was skipped, and",
    ),
    "nobody can read it": (
        lambda steps: [*steps[:3], replace(steps[3], wrote="who knows"), *steps[4:]], "step 4: 'who knows' does not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_other_record_is_found_and_its_step_named(name: str) -> None:
    mutate, said = MUTATIONS[name]
    found = faults(rows(mutate(good())))
    assert found[0].startswith(said), found


@pytest.mark.parametrize("place", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize("field", ["drawn", "tokens", "weights", "chain"])
def test_a_flipped_digest_is_found_and_its_step_named(place: int, field: str) -> None:
    lines = rows(good())
    line: Any = lines[place]
    flipped = f"{int(line[field], 16) ^ 1 << 17:016x}"
    lines[place] = {**line, field: flipped}
    assert f"step {place}: " in faults(lines)[0]


def test_a_damaged_line_is_its_step_and_a_damaged_plan_is_found() -> None:
    lines = rows(good())
    assert faults([*lines[:4], None, *lines[5:]]) == ["step 4: its line in audit.jsonl is damaged"]
    first: Any = lines[0]
    assert faults([{**first, "chain": "0" * 16}, *lines[1:]])[0] == "step 1: the plan's line before it was changed"


def test_what_was_left_out_is_no_fault_where_quarantine_says_so() -> None:
    steps = [*good()[:2], without(3, 2), *good()[3:]]
    assert faults(rows(steps), left_out={(3, 2)}) == []


def test_a_checkpoint_of_other_weights_is_found() -> None:
    assert faults(rows(good()), weights={4: "0" * 16}) == ["step 4: its checkpoint holds other weights than it made"]


def test_who_made_what_at_which_attempt_stands_in_the_line() -> None:
    calls = [
        (None, Call(worker=DATA), Call(worker="teacher-1", is_kept=True)),
        (16, Call(worker="rollout-12", attempt=2), Call(worker="teacher-1", attempt=3)),
        (16, Call(worker="rollout-12", attempt=2), Call(worker="teacher-1", is_kept=True)),
    ]
    made = [
        SequenceAudit(index=i, example=i, version=version, tokens="", wrote=wrote, scored=scored)
        for i, (version, wrote, scored) in enumerate(calls)
    ]
    audit = audit_step(17, made, remade=1)
    assert (audit.wrote, audit.scored, audit.remade) == ("data:1 r12@16#2:6", "t1k:5 t1#3:2", 1)


def test_a_year_at_a_step_a_second_stays_under_10_gb() -> None:
    """Of a large step number and version, four rollout workers, two teachers and 32 sequences a step."""
    step, seconds = 31_536_000, 365 * 24 * 3600
    made = [
        SequenceAudit(
            index=i,
            example=10**6 + i,
            version=None if i < 16 else step - 1,
            tokens="0" * 16,
            wrote=Call(worker=DATA) if i < 16 else Call(worker=f"rollout-{i % 4}"),
            scored=Call(worker=f"teacher-{i % 2}"),
        )
        for i in range(32)
    ]
    from rayqd.checksums import to_checked_line

    audit = replace(audit_step(step, made), weights="0" * 16)
    assert len(to_checked_line(to_row(audit, ""))) * seconds < 10e9


def chosen(staleness: int | None, since: int) -> list[StepAudit]:
    """The good run, in which auto came to `staleness` at step `since`."""
    return [replace(audit, max_staleness=staleness if audit.step >= since else None) for audit in good()]


def test_of_auto_each_step_is_held_against_what_it_had_come_to() -> None:
    assert faults(rows(chosen(1, since=2)), max_staleness=None) == []
    assert faults(rows(chosen(2, since=2)), max_staleness=None) == []
    early = faults(rows(chosen(1, since=4)), max_staleness=None)
    assert {fault.partition(":")[0] for fault in early} == {"step 2", "step 3"}
    assert all("1 behind; rollout.max_staleness=0" in fault for fault in early)


def test_what_auto_has_come_to_it_never_leaves() -> None:
    steps = chosen(1, since=2)
    steps[3] = replace(steps[3], max_staleness=2)
    found = faults(rows(steps), max_staleness=None)
    assert found == [
        "step 4: rollout.max_staleness=auto came to 1 before it, and is no more",
        "step 5: rollout.max_staleness=auto came to 2 before it, and is no more",
    ]


def taught(step: int, **changed: str) -> StepAudit:
    """Of two teachers, of which sequence i has number i % 2 and a worker of its own."""
    found = [
        replace(each, teacher=each.index % 2, scored=Call(worker=f"teacher-{each.index % 2}"))
        for each in sequences(step)
    ]
    audit = replace(audit_step(step, found, has_teachers=True), weights=f"{step:016x}")
    return replace(audit, **changed)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, []),
        ({"scored": "t0:7 t1:8"}, ["step 3: t0 scored sequences of teachers 0 and 1"]),
        ({"taught": "0:5 1:2"}, ["step 3: sequence 3 has no teacher"]),
        ({"taught": "0:5 2:a"}, ["step 3: teacher 2 is none of the 2 that the run has"]),
    ],
)
def test_of_several_teachers_each_sequence_has_one_and_no_worker_scores_for_two(
    changed: dict[str, str], says: list[str]
) -> None:
    steps = [taught(step, **(changed if step == 3 else {})) for step in range(1, NUM_STEPS + 1)]
    assert steps[0].taught == "0:5 1:a"
    assert faults(rows(steps), num_teachers=2) == says
