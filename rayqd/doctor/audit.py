"""Holds the record of a run against its plan: each planned sequence trained exactly once, by weights new enough.

Pure: from rows of `audit.jsonl` to what is wrong, step by step, so that a file of any length can be checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from rayqd.audit import Part, StepAudit, chain, digest_drawn, from_row, parse_parts
from rayqd.data.plan import Plan

Row = Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a run's settings and its other files say of its steps."""

    plan: Plan
    max_staleness: int | None  # None: as the steps' records say that rollout.max_staleness=auto came to
    num_steps: int  # that must be there
    left_out: Collection[tuple[int, int]] = ()  # (step from 1, index) of the sequences in quarantine.jsonl
    weights: Mapping[int, str] = field(default_factory=dict[int, str])  # digests of what checkpoints hold, by step
    num_teachers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is not as it was planned."""

    step: int  # counted from 1
    text: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.text}"


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was found, as far as the rows were read."""

    num_steps: int = 0
    num_sequences: int = 0
    num_written: int = 0  # of them by the student
    num_left_out: int = 0
    num_remade: int = 0  # steps
    staleness: int = 0  # the most versions that any rollout lagged behind
    num_checkpoints: int = 0  # whose weights are those that were trained


def find_faults(rows: Iterable[Row | None], expected: Expected, tally: Tally) -> Iterator[Fault]:
    """Yield what is wrong with the steps' `rows`, None for a damaged line, in their order; count in `tally`.

    `rows` begin with the plan's.
    """
    step, previous = 0, ""
    weights: str | None = None
    chosen: int | None = None  # by rollout.max_staleness=auto
    for row in rows:
        if row is None:
            yield Fault(step=step + 1, text="its line in audit.jsonl is damaged")
            step, previous = step + 1, ""
            continue
        if "plan" in row and step == 0:
            previous = str(row.get("chain"))
            if previous != chain("", row):
                yield Fault(step=1, text="the plan's line before it was changed")
            continue
        try:
            audit = from_row(row)
        except ValueError:
            yield Fault(step=step + 1, text="its line in audit.jsonl is no step's")
            continue
        yield from _find_order_faults(audit.step, step)
        if previous and row.get("chain") != chain(previous, row) and audit.step == step + 1:
            yield Fault(step=audit.step, text="its line does not follow from the one before: one of them was changed")
        yield from _find_step_faults(audit, expected, tally)
        if chosen is not None and audit.max_staleness != chosen:
            yield Fault(step=audit.step, text=f"rollout.max_staleness=auto came to {chosen} before it, and is no more")
        if audit.skipped and weights and audit.weights and audit.weights != weights:
            yield Fault(step=audit.step, text="it was skipped, and the weights changed all the same")
        step, previous, weights, chosen = audit.step, str(row.get("chain")), audit.weights, audit.max_staleness
        tally.num_steps += 1
    if step < expected.num_steps:
        yield Fault(step=step + 1, text=_missing(step + 1, expected.num_steps))


def _find_order_faults(step: int, before: int) -> Iterator[Fault]:
    if step <= before:
        yield Fault(step=step, text=f"it is there again, behind step {before}")
    elif step > before + 1:
        yield Fault(step=before + 1, text=_missing(before + 1, step - 1))


def _missing(first: int, last: int) -> str:
    return "it is missing" if first == last else f"it is missing, and all up to step {last}"


def _find_step_faults(audit: StepAudit, expected: Expected, tally: Tally) -> Iterator[Fault]:
    try:
        wrote, scored = parse_parts(audit.wrote), parse_parts(audit.scored)
        taught = parse_parts(audit.taught or "")
    except ValueError as error:
        yield Fault(step=audit.step, text=str(error))
        return
    planned = expected.plan.step(audit.step - 1)
    trained = {index for part in wrote for index in part.indices}
    drawn = [(s.index, s.example, s.on_policy) for s in planned if s.index in trained]
    if audit.drawn != digest_drawn(drawn):
        yield Fault(step=audit.step, text="it trained on other rows than the plan draws for it")
    for name, parts in (("trained on", wrote), ("scored", scored)):
        yield from _find_count_faults(audit.step, name, parts, {s.index for s in planned}, expected.left_out)
    yield from _find_teacher_faults(audit, scored, taught, expected, trained)
    on_policy = {s.index for s in planned if s.on_policy}
    bound = expected.max_staleness if expected.max_staleness is not None else audit.max_staleness or 0
    for part in wrote:
        yield from _find_version_faults(audit.step, part, on_policy, bound, tally)
    if (saved := expected.weights.get(audit.step)) and audit.weights:
        tally.num_checkpoints += 1
        if saved != audit.weights:
            yield Fault(step=audit.step, text="its checkpoint holds other weights than it made")
    tally.num_sequences += len(trained)
    tally.num_left_out += len(planned) - len(trained)
    tally.num_remade += bool(audit.remade)


def _find_count_faults(
    step: int, what: str, parts: list[Part], planned: set[int], left_out: Collection[tuple[int, int]]
) -> Iterator[Fault]:
    """Check that every planned sequence is in one part, unless it was left out."""
    counts = {index: sum(index in part.indices for part in parts) for index in planned}
    counts |= {index: -1 for part in parts for index in part.indices if index not in planned}
    for index, count in sorted(counts.items()):
        if count < 0:
            yield Fault(step=step, text=f"sequence {index} was {what}, which is not in the plan")
        elif count > 1:
            yield Fault(step=step, text=f"sequence {index} was {what} {count} times")
        elif count == 0 and (step, index) not in left_out:
            yield Fault(step=step, text=f"sequence {index} was not {what}, and quarantine.jsonl does not say why")


def _find_version_faults(
    step: int, part: Part, on_policy: set[int], max_staleness: int, tally: Tally
) -> Iterator[Fault]:
    """Check that the student wrote what is on-policy and nothing else, with weights new enough."""
    if part.version is None:
        for index in sorted(on_policy.intersection(part.indices)):
            yield Fault(step=step, text=f"sequence {index} is the data's own, and the plan has the student write it")
        return
    tally.num_written += len(part.indices)
    for index in sorted(set(part.indices) - on_policy):
        yield Fault(step=step, text=f"sequence {index} was written by {part.worker}, and the plan has the data's own")
    staleness = step - 1 - part.version
    tally.staleness = max(tally.staleness, staleness)
    if not 0 <= staleness <= max_staleness:
        yield Fault(
            step=step,
            text=f"{part.worker} wrote with weights of version {part.version}, {staleness} behind; "
            f"rollout.max_staleness={max_staleness}",
        )


def _find_teacher_faults(
    audit: StepAudit, scored: list[Part], taught: list[Part], expected: Expected, trained: set[int]
) -> Iterator[Fault]:
    """Check, of several teachers, that every sequence has one, and that no worker scored those of two."""
    if expected.num_teachers == 1:
        return
    teachers = {index: part.worker for part in taught for index in part.indices}
    yield from (
        Fault(step=audit.step, text=f"sequence {index} has no teacher") for index in sorted(trained - teachers.keys())
    )
    for number in sorted({part.worker for part in taught} - {str(each) for each in range(expected.num_teachers)}):
        yield Fault(step=audit.step, text=f"teacher {number} is none of the {expected.num_teachers} that the run has")
    for worker in sorted({part.worker for part in scored}):
        indices = {index for part in scored if part.worker == worker for index in part.indices}
        own = sorted({teachers[index] for index in indices if index in teachers})
        if len(own) > 1:
            yield Fault(step=audit.step, text=f"{worker} scored sequences of teachers {' and '.join(own)}")
