"""From a run's configuration and result to what its trackers are told."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rayqd.config import Config
from rayqd.config.resolved import setting_value
from rayqd.config.settings import settings, value_text
from rayqd.files import write_text
from rayqd.runs.paths import REPORT, RESULT, RESULT_TABLE, RUN_ID
from rayqd.runs.result_file import RunResult
from rayqd.trackers.tracker import Outcome, TrackedRun
from rayqd.trackers.trackers import Trackers, check_trackers

_COLUMNS = ("model", "KL to teacher", "same top-1", "perplexity", "bits/weight", "size in bytes", "held-out tokens")


def tracked_run(config: Config) -> TrackedRun:
    """Return the run with every setting that has a value."""
    values = {key: setting_value(config, key) for key in settings()}
    shown = {
        key: value if isinstance(value, bool | int | float | str) else value_text(value)
        for key, value in values.items()
        if value is not None
    }
    return TrackedRun(
        name=config.name,
        project=config.track_project,
        directory=config.run_dir,
        settings=shown,
        run_id=_identify(config.run_dir),
    )


@contextmanager
def track(config: Config, say: Callable[[str], None]) -> Generator[Trackers]:
    """Open the run's trackers, none unless `track` names some; where it ends early, they are told that."""
    check_trackers(config.track)
    trackers = Trackers(config.track, tracked_run(config) if config.track else None, say)
    try:
        yield trackers
    finally:
        trackers.finish(None)


def outcome_of(result: RunResult, run_dir: Path) -> Outcome:
    """Return the verdict, the table, the final numbers, and the files that tell the rest."""
    verdict = result.verdict
    student = result.student.fidelity
    summary = {
        "final_kl_to_teacher": student.kl_to_teacher,
        "final_top1_agreement": student.top1_agreement,
        "final_perplexity": student.perplexity,
        "total_seconds": result.seconds["total"],
    }
    if verdict and verdict.recovered:
        summary["recovered_share"] = verdict.recovered.value
    files = [run_dir / name for name in (REPORT, RESULT, RESULT_TABLE)]
    return Outcome(
        sentence=verdict.sentence if verdict else "",
        columns=_COLUMNS,
        rows=[
            [
                row.arm.name,
                row.fidelity.kl_to_teacher,
                row.fidelity.top1_agreement,
                row.fidelity.perplexity,
                row.bits_per_weight or 0.0,
                row.size_bytes or 0,
                row.fidelity.num_tokens,
            ]
            for row in result.rows
        ],
        summary=summary,
        files=[file for file in files if file.is_file()],
    )


def _identify(run_dir: Path) -> str:
    """Return the id that tells this run from others, also when it goes on; gives it one where it has none."""
    file = run_dir / RUN_ID
    if not file.is_file():
        write_text(file, uuid.uuid4().hex[:12])
    return file.read_text().strip()
