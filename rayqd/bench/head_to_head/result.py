"""What came of one contender in one arm: measured, failed or skipped. A row of the table and of the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import JsonValue, TypeAdapter

OWN = "rayqd"

Status = Literal["measured", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadToHeadResult:
    """One contender's steps. What was not measured is None, never 0."""

    arm: str  # on-policy or off-policy
    contender: str  # rayqd, or a peer's name
    label: str
    status: Status
    why: str = ""  # it failed or was skipped
    rollouts_alone: bool = False
    seconds: float | None = None  # median step, those of the warm-up left out
    step_seconds: tuple[float, ...] = ()  # of each step in that median
    cpu_seconds: float | None = None  # of all cores, in the median step
    trained_tokens: int | None = None  # completion tokens of a step
    first_step_seconds: float | None = None  # from the start of the process until the first step was done
    total_seconds: float | None = None  # of the process
    peak_bytes: int | None = None
    role_seconds: Mapping[str, float] = field(default_factory=dict[str, float])  # of a step, the median of each role
    settings: str = ""  # with which it was measured, where they were not those of the first attempt

    @property
    def tokens_per_second(self) -> float | None:
        """Return the completion tokens of a step over its median time."""
        return self.trained_tokens / self.seconds if self.trained_tokens and self.seconds else None

    def to_json(self) -> dict[str, JsonValue]:
        """Return the object that `--json` writes; what is None is left out of it."""
        content = {**asdict(self), "tokens_per_second": self.tokens_per_second}
        return {name: value for name, value in content.items() if value not in (None, "", (), {})}


def parse_head_to_head(row: Mapping[str, JsonValue]) -> HeadToHeadResult:
    """Read back what `to_json` returned. Raises ValueError."""
    return _RESULT.validate_python({name: value for name, value in row.items() if name != "tokens_per_second"})


_RESULT = TypeAdapter(HeadToHeadResult)
