"""What is known of a metric: its name, what it means, and where its value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "rayqd_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measured quantity; with several `fields`, one of each role."""

    name: str  # of the series, without PREFIX
    title: str  # for people
    unit: str
    help: str  # ASCII: Ray takes no other
    group: str  # what it is looked at for
    fields: Mapping[str, str]  # role -> the event's field
    event: str = "step"
    kind: Literal["gauge", "counter"] = "gauge"
    counts_from: Literal["step", "start"] = "step"  # a counter's field: what this step added, or all since the start
    by_arm: bool = False  # one value for each arm that is compared
    better: Literal["", "lower", "higher"] = ""  # "" where neither is
    by_source: bool = False  # the field has a value for each source of the data, by its name
    by_task: bool = False  # the field has a value for each metric of each benchmark, by its name
    rate: str = ""  # of a counter whose growth by the second says more: what that is
    label: str = ""  # before the value in the terminal's line; "" keeps it out
    label_rank: int = 0  # the highest goes first where the line is too long for a terminal; 0 stays
    form: str = ""  # how the terminal and the report write a value

    @property
    def series(self) -> str:
        """Return what Ray's endpoint calls it: Ray puts "ray_" before, and "_total" after what counts."""
        return f"ray_{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the names of the labels that tell its series apart."""
        several = {"arm": self.by_arm, "source": self.by_source, "task": self.by_task}
        return ("run", "role", *(name for name, has_several in several.items() if has_several))
