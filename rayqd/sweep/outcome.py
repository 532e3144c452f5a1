"""What became of the trials, read from their directories: table, report and a resumed sweep all start from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayqd.runs.directory import STOPPED_EARLY
from rayqd.sweep.trials import Trial

State = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A trial, and how far it came."""

    trial: Trial
    state: State
    step: int  # of the last evaluation
    kl_to_teacher: float | None  # there; None before the first one
    perplexity: float | None
    curve: tuple[
        tuple[int, float, float], ...
    ]  # step, KL to the teacher, perplexity at every evaluation, untrained first
    losses: tuple[tuple[int, float], ...]  # step, loss
    seconds: Mapping[str, float]  # total, and of each role
    teacher_seconds: float  # of loading and of scoring
    cache: Mapping[str, int]  # teacher scores found (hits) and made (misses)
    error: str | None

    @property
    def ended(self) -> bool:
        """Whether a resumed sweep leaves it alone."""
        return self.state in ("finished", "stopped early")

    def metric(self, name: str) -> float | None:
        return self.perplexity if name == "perplexity" else self.kl_to_teacher


def outcome_of(trial: Trial, sweep_dir: Path, error: str | None = None) -> Outcome:
    """Of a trial that was begun; `error` is why it failed."""
    directory = sweep_dir / trial.name
    result = _read_json(directory / "result.json")
    events = _read_rows(directory / "metrics.jsonl")
    curve = _curve(events, result)
    step, kl, perplexity = curve[-1] if curve and curve[-1][0] > 0 else (0, None, None)
    seconds, starts = result.get("seconds", {}), result.get("start_seconds", {})
    return Outcome(
        trial=trial,
        state=_state(result, error),
        step=step,
        kl_to_teacher=kl,
        perplexity=perplexity,
        curve=curve,
        losses=tuple((row["step"], row["loss"]) for row in events if row["event"] == "step"),
        seconds=seconds,
        teacher_seconds=seconds.get("teacher", 0.0)
        + sum(s for role, s in starts.items() if role.startswith("teacher")),
        cache={kind: sum(row.get(f"teacher_cache_{kind}") or 0 for row in events) for kind in ("hits", "misses")},
        error=error if not result else None,
    )


def by_metric(outcomes: Sequence[Outcome], metric: str) -> list[Outcome]:
    """Best first, and last those without a value."""

    def key(outcome: Outcome) -> tuple[bool, float, int]:
        value = outcome.metric(metric)
        return value is None, value or 0.0, outcome.trial.number

    return sorted(outcomes, key=key)


def best_of(outcomes: Sequence[Outcome], metric: str) -> Outcome | None:
    """The best of those that came to their end, or if none did of those that were stopped."""
    ranked = [outcome for outcome in by_metric(outcomes, metric) if outcome.ended]
    return next((outcome for outcome in ranked if outcome.state == "finished"), next(iter(ranked), None))


def _state(result: Mapping[str, Any], error: str | None) -> State:
    if result:
        return "stopped early" if STOPPED_EARLY in result else "finished"
    return "failed" if error else "unfinished"


def _curve(events: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> tuple[tuple[int, float, float], ...]:
    """The untrained start is the last arm of step 0: GPTQ's, not round-to-nearest's, where there are both."""
    points = {row["step"]: (row["kl_to_teacher"], row["perplexity"]) for row in events if row["event"] == "eval"}
    if result:
        last = result["rows"][-1]
        points[result["num_steps"]] = (last["kl_to_teacher"], last["perplexity"])
    return tuple((step, *points[step]) for step in sorted(points))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The last line may be half written."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
