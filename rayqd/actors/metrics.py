"""The run's metrics in Ray's own registry, which every node serves to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from rayqd.observe.metrics import METRICS, PREFIX, Metric, Sample, samples


class MetricSeries:
    """Series of one run. They belong to the process that makes them: the conductor, which hears of every event."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._series = {metric.name: _series(metric) for metric in METRICS}
        self._counted: dict[tuple[str, str], float] = {}

    def record(self, event: Mapping[str, Any]) -> None:
        for sample in samples(event):
            series = self._series[sample.metric.name]
            tags = {"run": self._run, **sample.tags}
            if isinstance(series, Gauge):
                series.set(sample.value, tags)
            elif (added := self._added(sample)) > 0:  # Ray refuses to add nothing
                series.inc(added, tags)

    def _added(self, sample: Sample) -> float:
        if sample.metric.counts_from == "step":
            return sample.value
        key = (sample.metric.name, sample.tags["role"])
        before, self._counted[key] = self._counted.get(key, 0.0), sample.value
        return sample.value - before


def _series(metric: Metric) -> Gauge | Counter:
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(f"{PREFIX}{metric.name}", description=metric.help, tag_keys=metric.tags)
