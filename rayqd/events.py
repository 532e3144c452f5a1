"""What the processes of a run tell its driver, and how the driver keeps it as lines of JSON.

    learner ── LearnerStep ──► controller ── StepEvent = LearnerStep + RoleMetrics ──► driver ─► metrics.jsonl
            ── any other event ─────────────────────────────────────────────────────►

The lines are flat: `{"event": "step", "step": 12, "loss": 0.15, ..., "num_retries": 0, ..., "time": 1.8e9}`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NotRequired, TypedDict, cast

from pydantic import JsonValue, TypeAdapter

from rayqd.audit import AuditEvent
from rayqd.metrics.catalogue import STUDENT
from rayqd.metrics.fidelity import Fidelity, parse_fidelity
from rayqd.metrics.samples import Sample, Value, make_samples
from rayqd.metrics.step import SELDOM_MEASURED, LearnerStep, RoleMetrics
from rayqd.spans import SpansEvent


class ArmKind(StrEnum):
    """How a model that a run compares came to be."""

    TEACHER = "teacher"
    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"
    AUTOROUND = "autoround"
    DISTILLED = "distilled"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One of the models that a run compares."""

    kind: ArmKind
    format: str = ""  # of its weights, as quant.format has it; "" where it has none: teacher, given model, in training
    step: int | None = None  # optimizer steps behind a student in training

    @property
    def name(self) -> str:
        """Return what people and files call it: `teacher`, `GPTQ INT4`, `distilled INT4`, `after step 8`."""
        if self.step is not None:
            return f"{_IN_TRAINING}{self.step}"
        return f"{_LABELS[self.kind]} {self.format.upper()}".rstrip()

    @property
    def series(self) -> str:
        """Return what its curve is called; the student is one curve, before and after its last step."""
        return STUDENT if self.kind is ArmKind.DISTILLED else self.name

    @classmethod
    def from_name(cls, name: str) -> Arm:
        """Read back what `name` says. Raises ValueError for a name that no arm has."""
        if name.startswith(_IN_TRAINING):
            return cls(kind=ArmKind.DISTILLED, step=int(name.removeprefix(_IN_TRAINING)))
        for kind, label in _LABELS.items():
            if name == label or name.startswith(f"{label} "):
                return cls(kind=kind, format=name.removeprefix(label).strip().lower())
        raise ValueError(f"no arm is called {name!r}")


_IN_TRAINING = "after step "
_LABELS = dict(
    zip(
        ArmKind,
        ("teacher", "round-to-nearest", "GPTQ", "AWQ", "AutoRound", "distilled", "given model"),
        strict=True,
    )
)
TEACHER = Arm(kind=ArmKind.TEACHER)


class ArmRow(TypedDict):
    """An `ArmResult` as JSON."""

    arm: str  # its name
    kind: str  # teacher, rtn, gptq, awq, autoround, distilled or model
    kl_to_teacher: float
    total_variation: float
    top1_agreement: float
    perplexity: float
    num_tokens: int
    by_row: NotRequired[dict[str, list[float]]]  # sums over each held-out row: num_tokens, kl, agrees, nll
    text_perplexity: NotRequired[float]
    num_text_tokens: NotRequired[int]
    bits_per_weight: NotRequired[float]
    bits_by_kind: NotRequired[dict[str, float]]
    layer_errors: NotRequired[dict[str, float]]
    size_bytes: NotRequired[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """A row of a run's result: one arm, measured at the end."""

    arm: Arm
    fidelity: Fidelity
    bits_per_weight: float | None = None  # of the whole model, scales included; None where nothing was exported
    size_bytes: int | None = None  # of the weights' files
    bits_by_kind: Mapping[str, float] | None = None  # "linear": 4.25, "embedding": 16; None for the teacher
    layer_errors: Mapping[str, float] | None = None  # of each layer's output, relative; see rayqd.model.layer_outputs

    def to_json(self) -> ArmRow:
        """Return the flat row that result.json holds."""
        row = {"arm": self.arm.name, "kind": self.arm.kind.value, **self.fidelity.to_json()}
        optional = ((name, getattr(self, name)) for name in _OPTIONAL)
        return cast("ArmRow", {**row, **{name: value for name, value in optional if value is not None}})

    @classmethod
    def from_json(cls, row: Mapping[str, JsonValue]) -> ArmResult:
        """Read back a row of any version. Raises ValueError where it is none."""
        row = _NOT_MEASURED_AT_FIRST | dict(row)
        optional = {n: read.validate_python(row[n]) for n, read in _OPTIONAL.items() if row.get(n) is not None}
        return cls(arm=Arm.from_name(str(row.get("arm"))), fidelity=parse_fidelity(row), **optional)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """An optimizer step is done."""

    learner: LearnerStep
    roles: RoleMetrics

    @property
    def step(self) -> int:
        """Return the number of optimizer steps done."""
        return self.learner.step

    def values(self) -> dict[str, Value]:
        """Return everything measured of the step, by the name that it has in metrics.jsonl."""
        return {**asdict(self.learner), **asdict(self.roles)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalEvent:
    """An arm has been measured on the held-out rows."""

    step: int  # optimizer steps done; 0 for arms without training
    arm: Arm
    fidelity: Fidelity
    items: tuple[Mapping[str, JsonValue], ...] = ()  # what it scored on each document of the benchmarks, a file's lines


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEvent:
    """A sequence was left out of its step."""

    step: int
    index: int  # in the step's batch
    reason: str
    on_policy: bool
    policy_version: int | None
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyEvent:
    """A role can work; the learner's says where it goes on from."""

    role: str
    step: int  # of the last checkpoint; 0 without one, -1 where the untrained arms are not measured yet either
    node: str  # "" where nodes have no names
    measures_again: bool = False  # what the weights of that step come to


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEvent:
    """Training begins."""

    step: int  # optimizer steps done before
    max_staleness: int | None = None  # that rollout.max_staleness=auto had come to by then


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEvent:
    """A checkpoint is on the learner's disk."""

    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusEvent:
    """What goes on at the moment; replaces the status before."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeEvent:
    """Something that the user should read, and that does not end the run."""

    text: str
    died: str = ""  # the worker whose death it tells of
    is_fault: bool = False  # it tells of something else that went wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedEvent:
    """The learner goes no further, because it was asked to stop."""

    step: int | None  # of the checkpoint that it kept; None where that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedEvent:
    """The run has come to its end; always its last event."""

    rows: tuple[ArmResult, ...]  # the teacher first, the distilled student last
    num_steps: int  # optimizer steps done
    exported_step: int  # whose weights are exported
    reason: str | None = None  # why training ended before its last step; None where it did not


RecordedEvent = StepEvent | EvalEvent | QuarantineEvent  # those that files keep
_Told = StartEvent | CheckpointEvent | StatusEvent | NoticeEvent | SpansEvent
_OtherEvent = ReadyEvent | AuditEvent | _Told | StoppedEvent | FinishedEvent
Event = RecordedEvent | _OtherEvent  # what the driver gets
ReportedEvent = LearnerStep | EvalEvent | QuarantineEvent | _OtherEvent  # what the controller is told


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedEvent:
    """An event as the controller keeps it for the driver."""

    event: Event
    time: float  # seconds since the epoch, by the clock of the controller's node


def samples(event: Event) -> Iterator[Sample]:
    """Yield what `event` says of each metric; a run's last event holds an evaluation of every arm."""
    match event:
        case StepEvent():
            yield from make_samples("step", event.values())
        case EvalEvent():
            yield from make_samples("eval", event.fidelity.values(), event.arm.series)
        case FinishedEvent():
            for row in event.rows:
                yield from make_samples("eval", row.fidelity.values(), row.arm.series)
        case CheckpointEvent():
            yield from make_samples("checkpoint", {"step": event.step})
        case _:
            return


def to_json(event: RecordedEvent, time: float) -> dict[str, JsonValue]:
    """Return the event as a line of metrics.jsonl or quarantine.jsonl has it; `time` in seconds since the epoch."""
    match event:
        case StepEvent():
            measured = event.values().items()
            row = {"event": "step", **{k: v for k, v in measured if v is not None or k not in SELDOM_MEASURED}}
        case EvalEvent():
            row = {"event": "eval", "step": event.step, "arm": event.arm.name, **event.fidelity.to_json()}
        case QuarantineEvent():
            row = {"event": "quarantine", **asdict(event)}
    return cast("dict[str, JsonValue]", {**row, "time": time})


def from_json(row: Mapping[str, JsonValue]) -> RecordedEvent:
    """Read back a line of any version. Raises ValueError where it is none of these events."""
    row = _NOT_MEASURED_AT_FIRST | dict(row)
    match row.get("event"):
        case "step":
            return StepEvent(learner=_LEARNER_STEP.validate_python(row), roles=_ROLE_METRICS.validate_python(row))
        case "eval":
            step, arm = _INTEGER.validate_python(row.get("step")), Arm.from_name(str(row.get("arm")))
            return EvalEvent(step=step, arm=arm, fidelity=parse_fidelity(row))
        case "quarantine":
            return _QUARANTINE.validate_python({"reason": "the teacher computed inf or nan", **row})
        case other:
            raise ValueError(f"no event is called {other!r}")


STOPPING = "keeping a checkpoint of the last step"  # the status that says that the learner has heard of a stop
_INTEGER = TypeAdapter(int)
_NUMBERS = TypeAdapter(dict[str, float])
_OPTIONAL: Mapping[str, TypeAdapter[Any]] = {  # fields of an ArmResult, that JSON leaves out where they are None
    "bits_per_weight": TypeAdapter(float),
    "size_bytes": _INTEGER,
    "bits_by_kind": _NUMBERS,
    "layer_errors": _NUMBERS,
}
_LEARNER_STEP, _ROLE_METRICS = TypeAdapter(LearnerStep), TypeAdapter(RoleMetrics)
_QUARANTINE = TypeAdapter(QuarantineEvent)
_NOT_MEASURED_AT_FIRST: dict[str, JsonValue] = {
    "total_variation": math.nan,
    "top1_agreement": math.nan,
    "num_quarantined": 0,
    "teacher_cache_hits": 0,
    "teacher_cache_misses": 0,
}
