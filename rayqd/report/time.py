"""Where the time went: all of it in parts, and of the steps how busy a worker of each role was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from rayqd.config import Config
from rayqd.console.progress import duration
from rayqd.events import StepEvent
from rayqd.report import page
from rayqd.report.page import Column, bars, parts_bar
from rayqd.runs.result_file import Fault


def all_of_it(parts: Mapping[str, float]) -> Markup:
    """Draw the parts of a run's time, which add up to all of it."""
    return parts_bar([(name, seconds, duration(seconds)) for name, seconds in parts.items()])


def busy(steps: Sequence[StepEvent], config: Config) -> Markup:
    """Draw a bar a role, as long as the steps took; the learner's has its waiting behind its work."""
    trained = sum(step.learner.learner_seconds for step in steps)
    waited = sum(step.learner.wait_seconds for step in steps)
    total = trained + waited
    rows: list[tuple[str, list[float], Markup]] = []
    written = sum(step.roles.rollout_seconds for step in steps) / config.rollout.num_workers
    scored = sum(step.roles.teacher_seconds for step in steps) / config.num_teacher_workers
    for role, seconds in (("rollout", written), ("teacher", scored)):
        if seconds:
            rows.append((role, [seconds], _text(seconds, total)))
    waiting = Markup(", waiting {} %").format(f"{100 * waited / total:.0f}") if total else ""
    rows.append(("learner", [trained, waited], _text(trained, total) + waiting))
    colours = {"learner": 0, "rollout": 1, "teacher": 2}
    return bars(rows, total, [colours[name] for name, _, _ in rows])


def _text(seconds: float, total: float) -> Markup:
    return Markup("<strong>{}</strong> · {} %").format(
        duration(seconds), f"{100 * seconds / total:.0f}" if total else 0
    )


def faults_section(faults: Sequence[Fault]) -> Markup:
    """Draw a row for each fault that the run survived, by when it was."""
    titles = [Column(title="after", kind="number"), Column(title="step", kind="number"), Column(title="what")]
    rows = [[duration(fault.seconds), f"{fault.step:,}", fault.text] for fault in faults]
    return page.section(
        "What went wrong, and was survived", page.table(titles, rows, tight=True), note="Of the last start."
    )
