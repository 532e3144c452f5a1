"""From the fields of an event to values of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from rayqd.metrics.catalogue import METRICS, Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A value of a metric."""

    metric: Metric
    value: float
    tags: dict[str, str]  # all but the run


Value: TypeAlias = float | Mapping[str, float] | None


def make_samples(event: str, values: Mapping[str, Value], arm: str | None = None) -> Iterator[Sample]:
    """Yield what the fields of an `event` say of each metric; `arm` is the series of an evaluation."""
    tags = {} if arm is None else {"arm": arm}
    for metric in METRICS:
        if metric.event == event:
            for role, name in metric.fields.items():
                value = values.get(name)
                if isinstance(value, Mapping):
                    part = "task" if metric.by_task else "source"
                    for name_of_part, number in value.items():
                        yield Sample(metric=metric, value=number, tags={"role": role, part: name_of_part, **tags})
                elif value is not None:
                    yield Sample(metric=metric, value=value, tags={"role": role, **tags})
