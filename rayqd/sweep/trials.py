"""A trial, an ordinary run that differs from the others of its sweep in a few settings, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Literal, TypedDict

from pydantic import JsonValue

from rayqd.events import EvalEvent, RecordedEvent, StepEvent
from rayqd.runs.metrics_file import read_events
from rayqd.runs.paths import RESULT
from rayqd.runs.result_file import DistillResult, read_result

Settings = Mapping[str, JsonValue]  # values by dotted name
State = Literal["finished", "stopped early", "failed", "unfinished"]

_MAX_VALUE_LENGTH = 24
_MAX_NAME_LENGTH = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A run's number in its sweep, and the settings that set it apart."""

    number: int  # from 1, in the order of their making
    settings: Settings

    @property
    def name(self) -> str:
        """Return `003-lmbda=0.5-lr=1e-4`: the same for the same trial, and a directory's name."""
        labels = short_labels(list(self.settings))
        parts = [f"{labels[key]}={_file_name(value_label(value))}" for key, value in self.settings.items()]
        return "-".join([f"{self.number:03d}", *parts])[:_MAX_NAME_LENGTH].rstrip("-.=")


class TrialConfig(TypedDict):
    """A trial as Ray Tune hands it around."""

    number: int
    name: str
    num_steps: int
    run: dict[str, JsonValue]  # its Config


class TrialReport(TypedDict):
    """What a trial reports to Ray Tune, which adds to it."""

    step: int
    kl_to_teacher: float  # nats a token
    perplexity: float
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured on the held-out rows after some steps."""

    step: int
    kl_to_teacher: float  # nats a token
    perplexity: float

    def metric(self, name: str) -> float:
        """Return what `sweep.metric` names."""
        return self.perplexity if name == "perplexity" else self.kl_to_teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A trial, and how far it came, as its directory says."""

    trial: Trial
    state: State
    curve: tuple[Evaluation, ...]  # by step, the untrained start first
    seconds: Mapping[str, float]  # total, and of each role
    teacher_seconds: float  # of loading and of scoring
    cache_hits: int  # teacher payloads that were there already
    cache_misses: int  # teacher payloads that were made
    error: str | None
    exported_step: int | None = None  # whose weights are exported; None before that

    @property
    def last(self) -> Evaluation | None:
        """Return what the trial came to: of the exported weights, else the last evaluation after training began.

        None before there is one.
        """
        for evaluation in reversed(self.curve):
            if evaluation.step > 0 and self.exported_step in (None, evaluation.step):
                return evaluation
        return None

    @property
    def step(self) -> int:
        """Return how far it came: the step of the last evaluation, 0 before the first one."""
        return self.curve[-1].step if self.curve else 0

    @property
    def ended(self) -> bool:
        """Return whether a resumed sweep leaves it alone."""
        return self.state in ("finished", "stopped early")

    def metric(self, name: str) -> float | None:
        """Return what `sweep.metric` names, of what it came to; None before there is an evaluation."""
        return self.last.metric(name) if self.last else None


def read_outcome(trial: Trial, sweep_dir: Path, error: str | None = None) -> Outcome:
    """Read what became of a trial that was begun; `error` is why it failed."""
    directory = sweep_dir / trial.name
    result = read_result(directory / RESULT)
    result = result if isinstance(result, DistillResult) else None
    events = read_events(directory)
    roles = [event.roles for event in events if isinstance(event, StepEvent)]
    return Outcome(
        trial=trial,
        state=_state(result, error),
        curve=_curve(events, result),
        seconds=result.seconds if result else {},
        teacher_seconds=_teacher_seconds(result) if result else 0.0,
        cache_hits=sum(step.teacher_cache_hits for step in roles),
        cache_misses=sum(step.teacher_cache_misses for step in roles),
        error=error if not result else None,
        exported_step=result.exported_step if result else None,
    )


def sort_by_metric(outcomes: Sequence[Outcome], metric: str) -> list[Outcome]:
    """Sort the best first, and last those without a value."""

    def key(outcome: Outcome) -> tuple[bool, float, int]:
        value = outcome.metric(metric)
        return value is None, value or 0.0, outcome.trial.number

    return sorted(outcomes, key=key)


def find_best(outcomes: Sequence[Outcome], metric: str) -> Outcome | None:
    """Return the best of those that finished, or if none did of those that were stopped early."""
    ranked = [outcome for outcome in sort_by_metric(outcomes, metric) if outcome.ended]
    return next((outcome for outcome in ranked if outcome.state == "finished"), next(iter(ranked), None))


def short_labels(keys: Sequence[str]) -> dict[str, str]:
    """Return each dotted name's last part, or all of it where two end alike."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def value_label(value: object) -> str:
    """Write `value` as people do: 1e-4, 0.5, on, q_proj+v_proj; of a path its last part."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return _shortest_number(value)
    if isinstance(value, list | tuple):
        return "+".join(value_label(part) for part in value)  # pyright: ignore[reportUnknownVariableType]
    return PurePath(value).name if isinstance(value, str) and "/" in value else str(value)


def _state(result: DistillResult | None, error: str | None) -> State:
    if result:
        return "stopped early" if result.stopped_early else "finished"
    return "failed" if error else "unfinished"


def _teacher_seconds(result: DistillResult) -> float:
    loading = (seconds for role, seconds in result.start_seconds.items() if role.startswith("teacher"))
    return result.seconds.get("teacher", 0.0) + sum(loading)


def _curve(events: Sequence[RecordedEvent], result: DistillResult | None) -> tuple[Evaluation, ...]:
    """Return an evaluation a step; the untrained start is the last arm of step 0: GPTQ's, where there is one."""
    by_step = {event.step: event.fidelity for event in events if isinstance(event, EvalEvent)}
    if result:
        step = result.num_steps if result.exported_step is None else result.exported_step
        by_step[step] = result.student.fidelity
    return tuple(
        Evaluation(step=step, kl_to_teacher=fidelity.kl_to_teacher, perplexity=fidelity.perplexity)
        for step, fidelity in sorted(by_step.items(), key=lambda item: item[0])
    )


def _shortest_number(value: float) -> str:
    """Return the shortest text that reads back as `value`; what is below a hundredth as 1e-4."""
    shortest = Decimal(repr(value)).normalize()
    return f"{shortest:e}" if 0 < abs(value) < 1e-2 else f"{shortest:f}"


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)[:_MAX_VALUE_LENGTH]
