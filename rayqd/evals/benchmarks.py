"""Teacher and students on the same benchmarks, side by side; what never changes is measured once a machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayqd.evals.harness import Benchmark
from rayqd.evals.paired import Difference, mean_difference, resampled_difference, weighted_difference
from rayqd.evals.scores import GroupScore, Scores, TaskScore
from rayqd.files import replace_file
from rayqd.model.source import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEACHER = "teacher"

Arm = Mapping[str, Scores]  # a model's scores by benchmark


class Bench:
    """Runs models on the benchmarks."""

    def __init__(self, benchmarks: Sequence[Benchmark], tokenizer: Any, say: Callable[[str], None]) -> None:
        self._benchmarks = benchmarks
        self._tokenizer = tokenizer
        self._say = say

    def scores(self, name: str, load: Callable[[], PreTrainedModel], identity: Sequence[str] = ()) -> Arm:
        """Of the model that `load` gives, which is called only if something is left to run.

        `identity` says all that the scores depend on besides the benchmarks; with it they are kept for the next time.
        """
        files = {each.name: self._file(each, identity) for each in self._benchmarks} if identity else {}
        found = {key: scores for key, file in files.items() if (scores := _kept(file))}
        missing = [each for each in self._benchmarks if each.name not in found]
        if found:
            self._say(f"{name}: {', '.join(found)} known from before")
        if not missing:
            return found
        model = load()
        for each in missing:
            began = time.monotonic()
            found[each.name] = scores = each.run(model, self._tokenizer)
            self._say(f"{name}: {each.name} in {time.monotonic() - began:.0f} s")
            if identity:
                _keep(files[each.name], scores)
        return found

    def compare(self, arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
        """A row for each metric of each task and group; `arms` by name, among them the teacher's."""
        rows: list[dict[str, Any]] = []
        for benchmark in self._benchmarks:
            scores = {name: arm[benchmark.name] for name, arm in arms.items()}
            teacher = scores[TEACHER]
            rows += [_group_row(benchmark, index, scores) for index in range(len(teacher.groups))]
            rows += [_task_row(benchmark, score, scores) for score in teacher.tasks]
        return rows

    def _file(self, benchmark: Benchmark, identity: Sequence[str]) -> Path:
        said = json.dumps([benchmark.fingerprint, self._tokenizer.chat_template, *identity])
        return cache_dir() / "benchmarks" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"


def _group_row(benchmark: Benchmark, index: int, scores: Mapping[str, Scores]) -> dict[str, Any]:
    teacher = scores[TEACHER]
    group = teacher.groups[index]
    parts = [teacher.of(task, group.metric, group.filter) for task in group.parts]

    def difference(model: Scores) -> Difference:
        return weighted_difference([_difference(benchmark, part, model) for part in parts], group.weights)

    row = _row(benchmark, group, {name: each.groups[index] for name, each in scores.items()})
    row |= {"num_documents": sum(len(p.document_ids) for p in parts), "tasks": len(parts)}
    return _with_differences(row, scores, difference, higher_is_better=parts[0].higher_is_better)


def _task_row(benchmark: Benchmark, score: TaskScore, scores: Mapping[str, Scores]) -> dict[str, Any]:
    same = {name: each.of(score.task, score.metric, score.filter) for name, each in scores.items()}
    row = _row(benchmark, score, same) | {
        "num_documents": len(score.document_ids),
        "part_of": benchmark.name if scores[TEACHER].groups else None,
    }
    return _with_differences(
        row, scores, lambda model: _difference(benchmark, score, model), higher_is_better=score.higher_is_better
    )


def _row(
    benchmark: Benchmark, score: TaskScore | GroupScore, same: Mapping[str, TaskScore | GroupScore]
) -> dict[str, Any]:
    return {
        "benchmark": benchmark.name,
        "task": score.task,
        "metric": score.metric,
        "filter": score.filter,
        "arms": {name: {"value": each.value, "stderr": each.stderr} for name, each in same.items()},
    }


def _with_differences(
    row: dict[str, Any],
    scores: Mapping[str, Scores],
    difference: Callable[[Scores], Difference],
    *,
    higher_is_better: bool,
) -> dict[str, Any]:
    for name in scores.keys() - {TEACHER}:
        found = difference(scores[name])
        row["arms"][name] |= {
            "difference": found.value,
            "difference_stderr": found.stderr,
            "verdict": found.verdict(higher_is_better=higher_is_better),
        }
    return row | {"higher_is_better": higher_is_better}


def _difference(benchmark: Benchmark, teacher: TaskScore, model: Scores) -> Difference:
    """Over the documents for which both have a value."""
    theirs = dict(zip(teacher.document_ids, teacher.document_values, strict=True))
    score = model.of(teacher.task, teacher.metric, teacher.filter)
    ours = dict(zip(score.document_ids, score.document_values, strict=True))
    both = [i for i in ours if i in theirs]
    model_values, teacher_values = [ours[i] for i in both], [theirs[i] for i in both]
    aggregation = benchmark.aggregation(teacher.task, teacher.metric)
    if aggregation is None:
        return mean_difference(model_values, teacher_values)
    return resampled_difference(model_values, teacher_values, aggregation)


def _kept(file: Path) -> Scores | None:
    """None where there are none, or none that are whole."""
    try:
        return Scores.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(file: Path, scores: Scores) -> None:
    """A full disk costs only the time to measure again."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file, concurrent=True) as partial:
            partial.write_text(json.dumps(scores.to_json()))
