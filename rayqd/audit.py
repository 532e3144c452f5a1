"""What a step trained on, in a line that is short enough to keep for ever: each planned sequence once, and who made it.

    {"step": 17, "drawn": "9f...", "wrote": "data:0f r1@16:f0", "scored": "t0:f7 t1#2:08", "tokens": "b2...", ...}

wrote    sequences by who wrote them: the data, or a rollout worker with weights of that version (`r1@16`: rollout-1)
scored   sequences by the teacher that scored them; `k` before the colon: from the scores that it keeps on disk
taught   of several teachers, sequences by the number of the one whose row they are of: `0:f0 1:0f`
#2       at the second attempt: the first worker had died
drawn, tokens, weights    digests: of what the plan drew, of the tokens that were trained on, of the weights after it

The sequences of a part are a mask in hexadecimal, whose bit i is the sequence of index i.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import xxhash
from pydantic import JsonValue, TypeAdapter

DATA = "data"  # who wrote what the data set has

_PART = re.compile(
    r"(?P<worker>data|[rt]?\d+)(?:@(?P<version>-?\d+))?(?:#(?P<attempt>\d+))?(?P<kept>k?):(?P<mask>[\da-f]+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who did a part of a step: a rollout worker or a teacher, at which attempt."""

    worker: str  # "rollout-0"; DATA
    attempt: int = 1
    is_kept: bool = False  # from what it keeps on disk

    def label(self, version: int | None = None) -> str:
        """Return how a line has it: `r0@16#2`."""
        role, dash, rank = self.worker.rpartition("-")
        name = f"{role[0]}{rank}" if dash else self.worker
        of_version = "" if version is None else f"@{version}"
        return f"{name}{of_version}{f'#{self.attempt}' if self.attempt > 1 else ''}{'k' if self.is_kept else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceAudit:
    """One sequence that a step trained on."""

    index: int  # in the step's batch
    example: int  # of the plan
    version: int | None  # of the weights that wrote it; None where the data did
    tokens: str  # digest of its tokens
    wrote: Call
    scored: Call
    teacher: int = 0  # its row's


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAudit:
    """The record of a step; see above."""

    step: int  # optimizer steps done, this one included
    drawn: str
    wrote: str
    scored: str
    tokens: str
    weights: str | None = None  # None where they are too large for a digest at every step
    remade: int = 0  # how often the whole step was made again, because parts of it were lost with a node
    skipped: bool = False  # its gradient was inf or nan, and the weights are as they were
    max_staleness: int | None = None  # that rollout.max_staleness=auto has come to; None before, and of a number
    taught: str | None = None  # None of a run with one teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """Steps are done; some of them may be known already, from before the learner was started again."""

    steps: tuple[StepAudit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The sequences of a step that one call made."""

    worker: str  # "data", "r0", "t1"; of `taught` the teacher's number
    version: int | None
    attempt: int
    is_kept: bool
    indices: tuple[int, ...]


def audit_step(
    step: int,
    sequences: Sequence[SequenceAudit],
    remade: int = 0,
    max_staleness: int | None = None,
    *,
    has_teachers: bool = False,
) -> StepAudit:
    """Return the record of `step`, counted from 1, of which `sequences` are all that it trains on.

    `has_teachers`: of a run with several.
    """
    in_order = sorted(sequences, key=lambda sequence: sequence.index)
    return StepAudit(
        step=step,
        drawn=digest_drawn((s.index, s.example, s.version is not None) for s in in_order),
        wrote=_format_parts((s.wrote.label(s.version), s.index) for s in in_order),
        scored=_format_parts((s.scored.label(), s.index) for s in in_order),
        tokens=_digest(" ".join(f"{s.index}:{s.tokens}" for s in in_order)),
        remade=remade,
        max_staleness=max_staleness,
        taught=_format_parts((str(s.teacher), s.index) for s in in_order) if has_teachers else None,
    )


def digest_drawn(drawn: Iterable[tuple[int, int, bool]]) -> str:
    """Return the digest of a step's sequences, by index: (index, example, whether the student wrote it)."""
    return _digest(" ".join(f"{index}:{example}:{'student' if own else DATA}" for index, example, own in drawn))


def parse_parts(text: str) -> list[Part]:
    """Return what `wrote`, `scored` or `taught` says. Raises ValueError where it is no such text."""
    found = [_PART.fullmatch(part) for part in text.split()]
    if None in found:
        raise ValueError(f"{text!r} does not say who made which sequences")
    return [
        Part(
            worker=part["worker"],
            version=None if part["version"] is None else int(part["version"]),
            attempt=int(part["attempt"] or 1),
            is_kept=bool(part["kept"]),
            indices=_indices(int(part["mask"], 16)),
        )
        for part in found
        if part
    ]


def to_row(audit: StepAudit, previous: str) -> dict[str, JsonValue]:
    """Return the line's object; `chain` holds it together with all lines before, the last of which has `previous`."""
    row: dict[str, JsonValue] = {name: value for name, value in asdict(audit).items() if value != _DEFAULTS.get(name)}
    return {**row, "chain": chain(previous, row)}


def from_row(row: Mapping[str, JsonValue]) -> StepAudit:
    """Read back what `to_row` returned. Raises ValueError where it is none."""
    return _STEP_AUDIT.validate_python(row)


def chain(previous: str, row: Mapping[str, JsonValue]) -> str:
    """Return the digest of a row, without its own, and of the one before it."""
    content = {name: value for name, value in row.items() if name != "chain"}
    return _digest(previous + json.dumps(content, separators=(",", ":")))


_STEP_AUDIT = TypeAdapter(StepAudit)
_DEFAULTS: dict[str, object] = {field.name: field.default for field in fields(StepAudit)}


def _format_parts(labelled: Iterable[tuple[str, int]]) -> str:
    masks: dict[str, int] = {}
    for label, index in labelled:
        masks[label] = masks.get(label, 0) | 1 << index
    return " ".join(f"{label}:{mask:x}" for label, mask in masks.items())


def _indices(mask: int) -> tuple[int, ...]:
    return tuple(index for index in range(mask.bit_length()) if mask >> index & 1)


def _digest(text: str) -> str:
    """Return the 64 bits of XXH3 in hexadecimal: they find accidents, not who means to deceive."""
    return xxhash.xxh3_64_hexdigest(text.encode())
