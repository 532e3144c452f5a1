"""Where the time of the steps went: how busy a worker of each role was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rayqd.config import Config
from rayqd.console.progress import duration
from rayqd.report.page import bars


def busy(steps: Sequence[Mapping[str, Any]], config: Config) -> Markup:
    """A bar a role, as long as the steps took; the learner's has its waiting behind its work."""
    trained, waited = (sum(step[name] for step in steps) for name in ("learner_seconds", "wait_seconds"))
    total = trained + waited
    rows: list[tuple[str, list[float], Markup]] = []
    for role, workers in (("rollout", config.rollout.num_workers), ("teacher", config.teacher.num_workers)):
        if seconds := sum(step.get(f"{role}_seconds", 0.0) for step in steps) / workers:
            rows.append((role, [seconds], _text(seconds, total)))
    waiting = Markup(", waiting {} %").format(f"{100 * waited / total:.0f}") if total else ""
    rows.append(("learner", [trained, waited], _text(trained, total) + waiting))
    colours = {"learner": 0, "rollout": 1, "teacher": 2}
    return bars(rows, total, [colours[name] for name, _, _ in rows])


def _text(seconds: float, total: float) -> Markup:
    return Markup("<strong>{}</strong> · {} %").format(
        duration(seconds), f"{100 * seconds / total:.0f}" if total else 0
    )
