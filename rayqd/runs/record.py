"""What one run's directory says of it, whether it is going on, has ended, or was cut short."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayqd.config import Config, load_config
from rayqd.errors import ConfigError, RunError
from rayqd.events import RecordedEvent, StepEvent
from rayqd.runs.directory import STOPPED_EARLY
from rayqd.runs.ended import read_last_words
from rayqd.runs.metrics_file import read_events, read_metrics

State = Literal["running", "finished", "stopped", "failed", "unfinished"]

_MADE_BY = "# rayqd "  # how a run's config.toml begins; the command's name follows


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as it stands on the disk."""

    path: Path
    name: str  # its path below the directory that was listed: "quickstart", "a-sweep/trial-3"
    command: str  # that has it: distill, quantize, ...
    state: State
    error: str  # what ended a failed run, in one line; else ""
    exit_code: int | None  # what its command returned; None where that is not known
    config: Config | None  # None where config.toml cannot be read
    problem: str  # why not, in one line; else ""
    events: Sequence[RecordedEvent]  # of metrics.jsonl
    result: dict[str, Any] | None  # of result.json
    updated: float  # seconds since the epoch: the last sign of life

    @property
    def trains(self) -> bool:
        return self.command == "distill"

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return next((event.step for event in reversed(self.events) if isinstance(event, StepEvent)), 0)

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps it is to do; None where nobody knows."""
        return self.config.learner.steps if self.config else None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The result's rows, the teacher first; before there is a result, what was measured of the student so far.

        Each has `arm`, `kl_to_teacher`, `perplexity`. Sweeps and the like have none.
        """
        if self.result is not None:
            return self.result.get("rows", [])
        return [row for row in read_metrics(self.path) if row.get("event") == "eval"]

    @property
    def arms(self) -> list[dict[str, Any]]:
        """What was measured of students, oldest first."""
        return [row for row in self.rows if row["arm"] != "teacher"]


def read_run(path: Path, name: str = "") -> RunRecord:
    """The run in directory `path`. Raises RunError where there is none."""
    config_file = path / "config.toml"
    if not config_file.is_file():
        raise RunError(f"{path} is no run's directory: it has no config.toml")
    running = is_running(path)  # before the rest, which a run writes before it lets its lock go
    config, problem = _config(config_file)
    result = _result(path / "result.json")
    words = read_last_words(path) or {}
    state = _state(running, result, words)
    return RunRecord(
        path=path,
        name=name or path.resolve().name,
        command=_command(config_file),
        state=state,
        error=words.get("error", "") if state == "failed" else "",
        exit_code=0 if state == "finished" else words.get("exit_code") if state in ("stopped", "failed") else None,
        config=config,
        problem=problem,
        events=read_events(path),
        result=result,
        updated=_updated(path),
    )


def find_run(word: str, runs_dir: Path) -> Path:
    """The directory of the run that `word` names: a path, or a name in `runs_dir`. Raises RunError."""
    for path in (Path(word), runs_dir / word):
        if (path / "config.toml").is_file():
            return path
    if Path(word).exists():
        raise RunError(f"{word} is no run's directory: it has no config.toml")
    raise RunError(f"there is no run {word}, neither a directory of that name nor one in {runs_dir}: see `rayqd runs`")


def is_running(path: Path) -> bool:
    """Whether a process has the run's directory locked.

    A shared lock is refused where the run holds its exclusive one, and given back at once where it does not.
    """
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY)
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


def _state(running: bool, result: dict[str, Any] | None, words: dict[str, Any]) -> State:
    if result is not None and STOPPED_EARLY not in result:
        return "finished"
    if running:
        return "running"
    if result is not None:
        return "stopped"
    # Without a last word it was killed, its machine went down, or it ran before last words were kept.
    return words.get("state", "unfinished")


def _config(file: Path) -> tuple[Config | None, str]:
    try:
        return load_config([f"@{file}"]), ""
    except ConfigError as error:  # another version's, or damaged: the rest of the directory still tells something
        return None, str(error)


def _command(config_file: Path) -> str:
    first = config_file.read_text(errors="replace").partition("\n")[0]
    return first.removeprefix(_MADE_BY) if first.startswith(_MADE_BY) else "distill"


def _result(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _updated(path: Path) -> float:
    files = (path / name for name in ("config.toml", "metrics.jsonl", "result.json", "ended.json"))
    return max(file.stat().st_mtime for file in files if file.exists())
