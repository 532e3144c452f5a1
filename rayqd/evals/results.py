"""From what lm-evaluation-harness returns to scores, document by document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rayqd.evals.scores import GroupScore, Scores, TaskScore


def read_scores(results: Any, loaded: Any) -> Scores:
    """Return what lm-eval's `results` say of the tasks and groups that it had `loaded`."""
    tasks = [
        score
        for name, samples in results["samples"].items()
        for score in _task_scores(name, samples, results["results"][name], results["higher_is_better"][name])
    ]
    groups = [
        score
        for name, group in loaded["groups"].items()
        for score in _group_scores(group, results["results"].get(name, {}), results["results"])
    ]
    return Scores(tasks=tuple(tasks), groups=tuple(groups))


def _task_scores(
    name: str, samples: Sequence[Any], aggregated: Any, higher_is_better: dict[str, bool]
) -> Iterator[TaskScore]:
    values: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault((metric, sample["filter"]), []).append((sample["doc_id"], _to_json_value(sample[metric])))
    for (metric, filtered), documents in values.items():
        if f"{metric},{filtered}" in aggregated:
            yield TaskScore(
                task=name,
                metric=metric,
                filter=filtered,
                value=float(aggregated[f"{metric},{filtered}"]),
                stderr=_stderr(aggregated, metric, filtered),
                higher_is_better=higher_is_better.get(metric) is not False,
                document_ids=tuple(i for i, _ in documents),
                document_values=tuple(value for _, value in documents),
            )


def _group_scores(group: Any, aggregated: Any, results: Any) -> Iterator[GroupScore]:
    """Yield the group's metrics, with the weights that lm-eval gives its tasks: by their size, or all the same."""
    for setting in group.aggregate_metric_list or []:
        filters = [key.partition(",")[2] for key in aggregated if key.startswith(f"{setting.metric},")]
        for filtered in filters:
            key = f"{setting.metric},{filtered}"
            names = [task.task_name for task in group.get_all_tasks() if key in results.get(task.task_name, {})]
            sizes = [results[name]["sample_len"] if setting.weight_by_size else 1 for name in names]
            yield GroupScore(
                task=group.name,
                metric=setting.metric,
                filter=filtered,
                value=float(aggregated[key]),
                stderr=_stderr(aggregated, setting.metric, filtered),
                parts=tuple(names),
                weights=tuple(size / sum(sizes) for size in sizes),
            )


def _stderr(aggregated: Any, metric: str, filtered: str) -> float | None:
    value = aggregated.get(f"{metric}_stderr,{filtered}", "N/A")
    return None if value == "N/A" else float(value)


def _to_json_value(value: Any) -> Any:
    """Return `value` as JSON keeps it."""
    if isinstance(value, (list, tuple)):
        return [_to_json_value(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return float(value)
    return value if value is None or isinstance(value, str) else str(value)
