"""`result.json`: what a run came to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import JsonValue, TypeAdapter

from rayqd.checksums import DamagedError, from_checked_json
from rayqd.events import ArmResult
from rayqd.runs.environment import Environment
from rayqd.runs.paths import RESULT
from rayqd.runs.startup import Startup
from rayqd.runs.verdict import Verdict, make_verdict

Command = Literal["distill", "quantize", "eval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What every run leaves that measures arms."""

    command: ClassVar[Command]

    name: str
    rows: tuple[ArmResult, ...]  # the teacher first, the best-trained student last
    seconds: Mapping[str, float]  # "total", and of work by role or part
    export: str | None = None  # where the student's files are; None in a trial that was stopped early
    environment: Environment | None = None  # None in runs from before it was kept, like `startup`
    startup: Startup | None = None
    finished: float | None = None  # seconds since the epoch
    parts: Mapping[str, float] | None = None  # seconds that add up to the total, by what they went to, in their order

    @property
    def verdict(self) -> Verdict | None:
        """Return what the run came to; None where nothing was rounded to nearest."""
        return make_verdict(self.rows)

    @property
    def teacher(self) -> ArmResult:
        """Return the row that the others are compared with."""
        return self.rows[0]

    @property
    def student(self) -> ArmResult:
        """Return the row of what was exported."""
        return self.rows[-1]

    def to_json(self) -> dict[str, object]:
        """Return the object that the file holds; what is None is left out of it."""
        fields: dict[str, object] = {
            "name": self.name,
            "command": self.command,
            "verdict": verdict.to_json() if (verdict := self.verdict) else None,
            "rows": [row.to_json() for row in self.rows],
            "seconds": dict(self.seconds),
            **self._own_fields(),
            "export": self.export,
            "environment": self.environment.to_json() if self.environment else None,
            "startup": self.startup.to_json() if self.startup else None,
            "finished": self.finished,
            "parts": dict(self.parts) if self.parts else None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _own_fields(self) -> dict[str, object]:
        """Return what only runs of this command have."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedEarly:
    """A trial that its sweep ended before the last step."""

    step: int  # optimizer steps done
    of: int  # that it was to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that went wrong, and that the run survived."""

    seconds: float  # since the start
    step: int  # optimizer steps done
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillResult(RunResult):
    """What `rayqd distill`, and each trial of a sweep, came to."""

    command: ClassVar[Command] = "distill"

    start_seconds: Mapping[str, float]  # from the start of each process until its model was loaded
    num_steps: int  # optimizer steps done
    stopped_early: StoppedEarly | None = None
    exported_step: int | None = None  # whose weights are exported; None in runs from before it was kept
    reason: str | None = None  # why training ended before learner.steps; None where it did not
    max_staleness: int | None = None  # that rollout.max_staleness=auto came to; None where it is a number
    engines: Mapping[str, str] | None = None  # what each rollout worker computes with; None in runs from before
    deaths: Mapping[str, int] = field(default_factory=dict[str, int])  # of processes, that the run survived, by worker

    faults: tuple[Fault, ...] = ()  # of the last start, in their order

    def _own_fields(self) -> dict[str, object]:
        early = asdict(self.stopped_early) if self.stopped_early else None
        return {
            "start_seconds": dict(self.start_seconds),
            "num_steps": self.num_steps,
            "stopped_early": early,
            "exported_step": self.exported_step,
            "reason": self.reason,
            "max_staleness": self.max_staleness,
            "engines": dict(self.engines) if self.engines else None,
            "deaths": dict(self.deaths) or None,
            "faults": [asdict(fault) for fault in self.faults] or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult(RunResult):
    """What `rayqd quantize` came to."""

    command: ClassVar[Command] = "quantize"

    method: str  # quant.method

    def _own_fields(self) -> dict[str, object]:
        return {"method": self.method}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredResult(RunResult):
    """What `rayqd eval --as-run` found of a model that is there."""

    command: ClassVar[Command] = "eval"

    model: str  # its directory, absolute
    model_digest: str | None = None  # of its files; None in runs from before it was kept

    def _own_fields(self) -> dict[str, object]:
        return {"model": self.model, "model_digest": self.model_digest}


def read_measured(run_dir: Path) -> MeasuredResult | None:
    """Return the result of a run that measured a model as it is; None where the run made its own."""
    result = read_result(run_dir / RESULT)
    return result if isinstance(result, MeasuredResult) else None


def read_measured_model(run_dir: Path) -> Path | None:
    """Return the directory of the model that a run measured as it is; None where the run made its own."""
    result = read_measured(run_dir)
    return Path(result.model) if result else None


def read_result(file: Path) -> RunResult | None:
    """Return what `file` says; None where it is absent, damaged, or a sweep's, which measures no arms."""
    content = read_object(file)
    with contextlib.suppress(ValueError):
        return None if content is None else parse_result(content)
    return None


def read_object(file: Path) -> dict[str, JsonValue] | None:
    """Return the JSON object in `file`, of whatever command; None where it is absent or damaged."""
    try:
        return from_checked_json(file.read_bytes())
    except (OSError, ValueError):
        return None


def find_damaged_result(file: Path) -> str | None:
    """Say in a few words why `file` cannot be taken for what was written; None where it can, or is absent."""
    try:
        from_checked_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, DamagedError) as error:
        return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
    return None


def parse_result(content: Mapping[str, JsonValue]) -> RunResult:
    """Read back the object of any version; those before `command` told it by their fields. Raises ValueError."""
    rows = content.get("rows")
    if not isinstance(rows, list) or not rows:
        raise ValueError("this result measures no arms")
    arms = [ArmResult.from_json(_OBJECT.validate_python(row)) for row in rows]
    command = content.get("command", "quantize" if "method" in content else "distill")
    if command == "eval":
        return _MEASURED.validate_python({**content, "rows": arms})
    adapter = _QUANTIZE if command == "quantize" else _DISTILL
    return adapter.validate_python({"start_seconds": {}, **content, "rows": arms})


_OBJECT = TypeAdapter(dict[str, JsonValue])
_DISTILL = TypeAdapter(DistillResult)
_QUANTIZE = TypeAdapter(QuantizeResult)
_MEASURED = TypeAdapter(MeasuredResult)
