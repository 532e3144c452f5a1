"""How close a model is to its teacher on held-out rows: one number a metric, and its sums row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

from pydantic import JsonValue, TypeAdapter

from rayqd.metrics.samples import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRow:
    """Sums over the trained tokens of each held-out row, [R]: by them two models are compared row by row."""

    num_tokens: tuple[int, ...]
    kl: tuple[float, ...]  # nats
    agrees: tuple[int, ...]  # tokens at which both find the same id likeliest
    nll: tuple[float, ...]  # nats, of the reference completion


def value_name(task: str, metric: str, filtered: str) -> str:
    """Return `arc_easy/acc`, or `gsm8k/exact_match,strict-match` where there are several filters."""
    return f"{task}/{metric}" + ("" if filtered == "none" else f",{filtered}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskValue:
    """A metric of a benchmark, as one model scored it."""

    task: str
    metric: str
    filter: str  # how an answer is read from what was written; "none" where there is no choice
    value: float
    stderr: float | None  # of this model alone; None where lm-eval has none
    num_documents: int
    higher_is_better: bool
    num_answers: int = 0  # that the model wrote in its own words on the whole benchmark
    num_cut: int = 0  # of those, that the limit of tokens ended; they are scored as they stand

    @property
    def name(self) -> str:
        """Return what `value_name` makes of it."""
        return value_name(self.task, self.metric, self.filter)


def find_value(values: Sequence[TaskValue], name: str) -> TaskValue | None:
    """Return the value called `name`, or the first one of the task of that name; None where there is none."""
    return next((each for each in values if name in (each.name, each.task)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResults:
    """What one model scored on the benchmarks."""

    values: tuple[TaskValue, ...] = ()
    items: tuple[Mapping[str, JsonValue], ...] = ()  # document by document, as `rayqd.runs.benchmarks` keeps them
    remarks: tuple[str, ...] = ()  # for the user: what was left out, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How close a model is to the teacher: means over the completion tokens of the held-out rows."""

    kl_to_teacher: float  # KL(teacher‖student), nats a token
    total_variation: float  # sum |p - q| / 2, 0 to 1: how often two samplers with shared randomness must differ
    top1_agreement: float  # share of the tokens at which both find the same id likeliest
    perplexity: float  # of the reference completions
    num_tokens: int
    by_row: ByRow | None = None  # None in runs from before it was kept
    text_perplexity: float | None = None  # of eval.text; None without one
    num_text_tokens: int | None = None  # of it, that were scored
    tasks: tuple[TaskValue, ...] = ()  # of the benchmarks, where they were run beside it

    def find_task(self, name: str) -> TaskValue | None:
        """Return the value called `name`, or the first one of the task of that name; None where there is none."""
        return find_value(self.tasks, name)

    def values(self) -> dict[str, Value]:
        """Return everything measured, by the names of fields that the table of metrics knows."""
        return {**asdict(self), "task_values": {each.name: each.value for each in self.tasks}}

    def to_json(self) -> dict[str, JsonValue]:
        """Return its fields as a file has them; what is None, or empty, is left out of them."""
        fields: dict[str, JsonValue] = {n: value for n, value in asdict(self).items() if value not in (None, ())}
        if self.tasks:
            fields["tasks"] = [asdict(each) for each in self.tasks]
        if self.by_row:
            fields["by_row"] = {name: [*values] for name, values in asdict(self.by_row).items()}
        return fields


class TextFields(TypedDict):
    """Those of its fields that are about `eval.text`."""

    text_perplexity: float
    num_text_tokens: int


def parse_fidelity(row: Mapping[str, JsonValue]) -> Fidelity:
    """Read back a row of any version, other fields in it or not. Raises ValueError where it is none."""
    return _FIDELITY.validate_python(row)


_FIDELITY = TypeAdapter(Fidelity)
