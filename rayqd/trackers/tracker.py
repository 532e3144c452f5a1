"""What a tracker is to a run, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from rayqd.metrics.samples import Sample

Settings = Mapping[str, JsonValue]  # by key, as learner.lr


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as a tracker knows it."""

    name: str
    project: str
    directory: Path  # of the run
    settings: Settings
    run_id: str  # the same when the run goes on, so that its curves do too


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a finished run came to."""

    sentence: str  # the verdict
    columns: Sequence[str]  # of the result's table
    rows: Sequence[Sequence[str | float]]
    summary: Mapping[str, float]  # final numbers, by name
    files: Sequence[Path]  # report.html, result.json, result.md


class Tracker(Protocol):
    """One tracker of one run; its calls may raise whatever its library does."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` by name, after `step` optimizer steps."""
        ...

    def finish(self, outcome: Outcome | None) -> None:
        """Record the outcome, None of a run that ended early, and end."""
        ...


def series_name(sample: Sample) -> str:
    """Return what a metric is called there: `loss`, `tokens_per_second/rollout`, `kl_to_teacher/student`."""
    tags = sample.tags
    several_roles = len(sample.metric.fields) > 1
    of = [tags.get(name, "") for name in ("arm", "source", "task")]
    parts = [sample.metric.name, tags["role"] if several_roles else "", *of]
    return "/".join(part.replace(" ", "_") for part in parts if part)
