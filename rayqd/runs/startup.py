"""A run's start-up table: where the time went before its first optimizer step and after its last one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from rayqd.spans import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """All times in seconds since the command was given, its interpreter's start and imports included.

    Processes on other machines have clocks of their own, and spans as far off as those.
    """

    first_step: float | None  # done; None where there was none left to do, like `last_step`
    last_step: float | None  # done
    end: float  # of the run's processes; the report and the table on the screen come after it
    spans: tuple[Span, ...]  # by start

    @property
    def before(self) -> list[Span]:
        """Return the spans that began before the first step was done; all where there was none."""
        return [s for s in self.spans if self.first_step is None or s.start < self.first_step]

    @property
    def after(self) -> list[Span]:
        """Return the spans that ended after the last step, those that began before the first one's end left out."""
        first, last = self.first_step, self.last_step
        return [] if first is None or last is None else [s for s in self.spans if s.start >= first and s.end > last]

    def to_json(self) -> dict[str, object]:
        """Return the object that result.json holds."""
        return {**asdict(self), "spans": [asdict(span) for span in self.spans]}


def make_startup(began: float, step_times: Sequence[float], spans: Iterable[Span], end: float) -> Startup:
    """Return the table of a run that began and ended then; times and spans are given by the epoch's clock."""
    moved = [replace(s, start=round(s.start - began, 3), end=round(s.end - began, 3)) for s in spans]
    return Startup(
        first_step=round(step_times[0] - began, 3) if step_times else None,
        last_step=round(step_times[-1] - began, 3) if step_times else None,
        end=round(end - began, 3),
        spans=tuple(sorted(moved, key=lambda s: (s.start, -s.end))),
    )


def list_innermost(spans: Sequence[Span]) -> list[Span]:
    """Return those in which no other span of the same role lies, the longest first."""
    leaves = [s for s in spans if not any(_lies_in(other, s) for other in spans)]
    return sorted(leaves, key=lambda s: -s.seconds)


def _lies_in(inner: Span, outer: Span) -> bool:
    if inner is outer or inner.role != outer.role or inner.seconds >= outer.seconds:
        return False
    return outer.start <= inner.start and inner.end <= outer.end
