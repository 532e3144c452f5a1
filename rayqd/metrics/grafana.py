"""The Grafana dashboard: a panel for each metric of the table, as the JSON that Grafana imports."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rayqd.metrics.catalogue import METRICS, Metric, metric

Json = dict[str, Any]

STATS = ("step", "checkpoint_step", "loss", "kl_to_teacher", "staleness", "retries")  # large, at the top
_COLUMNS = 24  # of Grafana's grid
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SELECTED = '{run=~"$run"}'


def dashboard() -> Json:
    """Return the whole of it; the runs to look at are chosen at its top."""
    return {
        "uid": "rayqd",
        "title": "rayqd",
        "description": "Distillation runs on Ray: how good, how fast, how fresh, and what went wrong.",
        "tags": ["ray", "rayqd"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair through all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "templating": {"list": [_datasource_choice(), _run_choice()]},
        "panels": [{"id": i, **panel} for i, panel in enumerate(_panels(), start=1)],
    }


def query(shown: Metric) -> str:
    """Return the PromQL of a metric; a run that was resumed has a series of each of its processes.

    Rates are over five minutes: counters rise once a step, and a step may take one.
    """
    by = ", ".join(shown.tags)
    if shown.rate:
        return f"sum by ({by}) (rate({shown.series}{_SELECTED}[5m]))"
    return f"{'sum' if shown.kind == 'counter' else 'max'} by ({by}) ({shown.series}{_SELECTED})"


def _panels() -> Iterator[Json]:
    width = _COLUMNS // len(STATS)
    for i, name in enumerate(STATS):
        yield _stat(metric(name)) | {"gridPos": {"x": i * width, "y": 0, "w": width, "h": 4}}
    y = 4
    for group, members in groupby(METRICS, key=lambda each: each.group):
        yield _heading(group, y)
        y += 1
        for i, each in enumerate(members):
            x = i % 3 * 8
            y += 8 if i and not x else 0
            yield _curve(each) | {"gridPos": {"x": x, "y": y, "w": 8, "h": 8}}
        y += 8


def _heading(title: str, y: int) -> Json:
    grid = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": grid}


def _stat(shown: Metric) -> Json:
    expression = query(shown).replace(_SELECTED, '{run=~"$run", arm="student"}') if shown.by_arm else query(shown)
    return _panel(shown, "stat", shown.title, expression) | {
        "options": {
            "colorMode": "none",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
        "fieldConfig": {"defaults": _written(shown) | {"displayName": "${__field.labels.run}"}, "overrides": []},
    }


def _curve(shown: Metric) -> Json:
    drawing = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 6, "showPoints": "never", "spanNulls": True}
    defaults = _written(shown) | {"custom": drawing | {"axisLabel": "" if shown.rate else shown.unit}}
    return _panel(shown, "timeseries", shown.rate or shown.title, query(shown)) | {
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


def _panel(shown: Metric, kind: str, title: str, expression: str) -> Json:
    apart = [tag for tag in shown.tags if tag != "run" and (tag != "role" or len(shown.fields) > 1)]
    several = "".join(f" {{{{{tag}}}}}" for tag in apart)
    target = {"refId": "A", "expr": expression, "legendFormat": f"{{{{run}}}}{several}", "datasource": _DATASOURCE}
    return {
        "type": kind,
        "title": title,
        "description": shown.help,
        "datasource": _DATASOURCE,
        "targets": [target],
    }


def _written(shown: Metric) -> Json:
    """How its values are written; Prometheus has no series of what has not happened yet."""
    nothing = {"noValue": "0"} if shown.kind == "counter" else {}
    if shown.name == "wait_seconds" or shown.form.endswith("%"):
        return {"unit": "percentunit", "min": 0, **nothing}
    if shown.form.endswith("f") and not shown.rate:
        return {"unit": "none", "decimals": int(shown.form[-2]), **nothing}
    return {"unit": "none", **nothing}


def _datasource_choice() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0}


def _run_choice() -> Json:
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": f"label_values({metric('step').series}, run)",
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }
