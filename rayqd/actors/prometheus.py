"""The run's metrics in Ray's own registry, which every node serves to Prometheus."""

from __future__ import annotations

import asyncio

from ray.util.metrics import Counter, Gauge

from rayqd.events import Event, samples
from rayqd.metrics.catalogue import METRICS, PREFIX, Metric
from rayqd.metrics.samples import Sample

_REPEAT_SECONDS = 1.0  # far below RAY_metrics_report_interval_ms, 10 s unless somebody sets it


class MetricSeries:
    """Series of one run. They belong to the process that makes them: the controller, which is told every event."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._series = {metric.name: _make_series(metric) for metric in METRICS}
        self._counted: dict[tuple[str, str], float] = {}
        self._newest: dict[tuple[str, ...], Sample] = {}

    def record(self, event: Event) -> None:
        """Set gauges and raise counters by the numbers of `event`."""
        for sample in samples(event):
            series = self._series[sample.metric.name]
            if isinstance(series, Gauge):
                self._newest[sample.metric.name, *sample.tags.values()] = sample
                series.set(sample.value, self._tags(sample))
            elif (increase := self._increase(sample)) > 0:  # Ray refuses to add nothing
                series.inc(increase, self._tags(sample))

    async def keep_alive(self) -> None:
        """Set every gauge again and again, until cancelled: Ray drops what was not set for two report intervals.

        An evaluation would be gone long before the next, and a slow step's loss before the next step's.
        """
        while True:
            await asyncio.sleep(_REPEAT_SECONDS)
            for sample in self._newest.values():
                series = self._series[sample.metric.name]
                assert isinstance(series, Gauge)
                series.set(sample.value, self._tags(sample))

    def _tags(self, sample: Sample) -> dict[str, str]:
        return {"run": self._run, **sample.tags}

    def _increase(self, sample: Sample) -> float:
        if sample.metric.counts_from == "step":
            return sample.value
        key = (sample.metric.name, sample.tags["role"])
        before, self._counted[key] = self._counted.get(key, 0.0), sample.value
        return sample.value - before


def _make_series(metric: Metric) -> Gauge | Counter:
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(f"{PREFIX}{metric.name}", description=metric.help, tag_keys=metric.tags)
