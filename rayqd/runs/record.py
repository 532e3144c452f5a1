"""What one run's directory says of it, whether it is going on, has ended, or was cut short."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayqd.config import Config
from rayqd.config.hints import nearest_word
from rayqd.errors import ConfigError, RunError
from rayqd.events import TEACHER, ArmResult, EvalEvent, RecordedEvent, StepEvent
from rayqd.runs.config_file import command_of, load_run_config
from rayqd.runs.ended import AbnormalExit, read_abnormal_exit
from rayqd.runs.metrics_file import MetricsTail
from rayqd.runs.paths import CONFIG, ENDED, LOCK, METRICS, RESULT
from rayqd.runs.result_file import DistillResult, RunResult, find_damaged_result, read_object, read_result

State = Literal["running", "finished", "stopped", "failed", "unfinished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as it stands on the disk."""

    path: Path
    name: str  # its path below the directory that was listed: "quickstart", "a-sweep/trial-3"
    command: str  # that has it: distill, quantize, eval, sweep or compare
    state: State
    error: str  # what ended a failed run, in one line; else ""
    exit_code: int | None  # what its command returned; None where that is not known
    config: Config | None  # None where config.toml cannot be read
    problem: str  # what of its files cannot be read, in one line; else ""
    events: Sequence[RecordedEvent]  # of metrics.jsonl
    result: RunResult | None  # None until the run has finished, and of a sweep
    updated: float  # seconds since the epoch: the last sign of life

    @property
    def trains(self) -> bool:
        """Return whether it has optimizer steps."""
        return self.command == "distill"

    @property
    def rounds(self) -> bool:
        """Return whether its model has the format of its settings: not one that was made elsewhere."""
        return self.command != "eval"

    @property
    def step(self) -> int:
        """Return the number of optimizer steps done."""
        return next((event.step for event in reversed(self.events) if isinstance(event, StepEvent)), 0)

    @property
    def num_steps(self) -> int | None:
        """Return the number of optimizer steps it is to do; None where nobody knows."""
        return self.config.learner.steps if self.config else None

    @property
    def rows(self) -> Sequence[ArmResult]:
        """Return the result's rows, the teacher first; before there is a result, what was measured of students so far.

        Sweeps have none.
        """
        if self.result:
            return self.result.rows
        evaluations = (event for event in self.events if isinstance(event, EvalEvent))
        return [ArmResult(arm=event.arm, fidelity=event.fidelity) for event in evaluations]

    @property
    def students(self) -> Sequence[ArmResult]:
        """Return the same without the teacher."""
        return [row for row in self.rows if row.arm != TEACHER]


def read_run(path: Path, name: str = "") -> RunRecord:
    """Read the run in directory `path`. Raises RunError where there is none."""
    config_file = path / CONFIG
    if not config_file.is_file():
        raise RunError(f"{path} is no run's directory: it has no {CONFIG}")
    running = is_running(path)  # before the rest, which a run writes before it lets its lock go
    config, problem = _read_config(config_file)
    ended = read_object(path / RESULT) is not None  # a sweep's is no RunResult
    result = read_result(path / RESULT)
    metrics = MetricsTail(path)
    events = metrics.new_events()
    abnormal_exit = read_abnormal_exit(path)
    stopped_early = isinstance(result, DistillResult) and result.stopped_early is not None
    state = _state(running, "stopped" if stopped_early else "finished" if ended else None, abnormal_exit)
    return RunRecord(
        path=path,
        name=name or path.resolve().name,
        command=command_of(config_file),
        state=state,
        error=abnormal_exit.error if abnormal_exit and state == "failed" else "",
        exit_code=_exit_code(state, abnormal_exit),
        config=config,
        problem=problem or _find_damage(path, metrics),
        events=events,
        result=result,
        updated=_updated(path),
    )


def find_run(word: str, runs_dir: Path) -> Path:
    """Return the directory of the run that `word` names: a path, or a name in `runs_dir`. Raises RunError."""
    for path in (Path(word), runs_dir / word):
        if (path / CONFIG).is_file():
            return path
    if Path(word).exists():
        raise RunError(f"{word} is no run's directory: it has no {CONFIG}")
    near = nearest_word(Path(word).name, [file.parent.name for file in runs_dir.glob(f"*/{CONFIG}")])
    hint = f"did you mean {near}?" if near else "see `rayqd runs`"
    raise RunError(f"there is no run {word}, neither a directory of that name nor one in {runs_dir}: {hint}")


def is_running(path: Path) -> bool:
    """Return whether a process has the run's directory locked.

    A shared lock is refused where the run holds its exclusive one, and given back at once where it does not.
    """
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody can tell
        return False
    finally:
        os.close(descriptor)
    return False


def _state(running: bool, end: State | None, abnormal_exit: AbnormalExit | None) -> State:
    """Return the state of a run whose result.json, if there is one, says that `end` was its end."""
    if end == "finished":
        return "finished"
    if running:
        return "running"
    if end:
        return end
    # Without a record it was killed, its machine went down, or it ran before there were such records.
    return abnormal_exit.state if abnormal_exit else "unfinished"


def _exit_code(state: State, abnormal_exit: AbnormalExit | None) -> int | None:
    if state == "finished":
        return 0
    return abnormal_exit.exit_code if abnormal_exit and state in ("stopped", "failed") else None


def _read_config(file: Path) -> tuple[Config | None, str]:
    try:
        return load_run_config(file), ""
    except (
        ConfigError,
        RunError,
    ) as error:  # another version's, or damaged: the rest of the directory still tells something
        return None, str(error)


def _find_damage(path: Path, metrics: MetricsTail) -> str:
    if fault := find_damaged_result(path / RESULT):
        return f"{path / RESULT} {fault}: the same command makes it again"
    if metrics.num_damaged:
        return f"{path / METRICS}: {metrics.num_damaged} damaged lines are left out"
    return ""


def _updated(path: Path) -> float:
    files = (path / name for name in (CONFIG, METRICS, RESULT, ENDED))
    return max(file.stat().st_mtime for file in files if file.exists())
