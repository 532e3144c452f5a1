"""Teacher and students on the same benchmarks, side by side; what never changes is measured once a machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from rayqd.evals.harness import Benchmark
from rayqd.evals.language_model import LanguageModel
from rayqd.evals.paired import Difference, mean_difference, resampled_difference, weighted_difference
from rayqd.evals.question_batch import QuestionBatch
from rayqd.evals.scores import GroupScore, Scores, TaskScore
from rayqd.files import replace_file
from rayqd.model.source import cache_dir
from rayqd.runs.benchmarks import BenchmarkItems, BenchmarkRow, BenchmarkScore

TEACHER = "teacher"

ModelScores = Mapping[str, Scores]  # a model's scores by benchmark


class BenchmarkRunner:
    """Runs models on the benchmarks."""

    def __init__(
        self, benchmarks: Sequence[Benchmark], tokenizer: Any, say: Callable[[str], None], batch_size: int
    ) -> None:
        """`batch_size`: sequences that a model of transformers answers at a time, fewer where memory ends."""
        self._benchmarks = benchmarks
        self._tokenizer = tokenizer
        self._say = say
        self._batch = QuestionBatch(size=batch_size, tell=say)

    def score(
        self, name: str, load: Callable[[], AbstractContextManager[LanguageModel]], identity: Sequence[str] = ()
    ) -> ModelScores:
        """Score the model that `load` returns, which is called only if something is left to run.

        `identity` says all that the scores depend on besides the benchmarks; with it they are kept for the next time.
        """
        files = {b.name: self._cache_file(b, identity) for b in self._benchmarks} if identity else {}
        arm = {key: scores for key, file in files.items() if (scores := _read_cached(file))}
        missing = [benchmark for benchmark in self._benchmarks if benchmark.name not in arm]
        if arm:
            self._say(f"{name}: {', '.join(arm)} known from before")
        if not missing:
            return arm
        with load() as model:
            for benchmark in missing:
                began = time.monotonic()
                arm[benchmark.name] = scores = self._batch.attempt(benchmark.name, partial(benchmark.run, model))
                self._say(f"{name}: {benchmark.name} in {time.monotonic() - began:.0f} s")
                for remark in describe_limits(benchmark.name, scores):
                    self._say(remark)
                if identity:
                    _write_cache(files[benchmark.name], scores)
        return arm

    def compare(self, arms: Mapping[str, ModelScores]) -> list[BenchmarkRow]:
        """Return a row for each metric of each task and group; `arms` by name, among them the teacher's."""
        rows: list[BenchmarkRow] = []
        for benchmark in self._benchmarks:
            scores = {name: arm[benchmark.name] for name, arm in arms.items()}
            teacher = scores[TEACHER]
            rows += [_group_row(benchmark, index, scores) for index in range(len(teacher.groups))]
            rows += [_task_row(benchmark, score, scores) for score in teacher.tasks]
        return rows

    def list_items(self, arms: Mapping[str, ModelScores]) -> Iterator[BenchmarkItems]:
        """Yield what each model scored on each document, by which any two can be compared later."""
        for benchmark in self._benchmarks:
            for name, arm in arms.items():
                yield from items_of(benchmark, name, arm[benchmark.name])

    def _cache_file(self, benchmark: Benchmark, identity: Sequence[str]) -> Path:
        key = json.dumps([benchmark.fingerprint, self._tokenizer.chat_template, *identity])
        return cache_dir() / "benchmarks" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def items_of(benchmark: Benchmark, name: str, scores: Scores) -> Iterator[BenchmarkItems]:
    """Yield what the model called `name` scored on each document of a benchmark, metric by metric."""
    for score in scores.tasks:
        yield BenchmarkItems(
            model=name,
            benchmark=benchmark.name,
            fingerprint=benchmark.fingerprint,
            task=score.task,
            metric=score.metric,
            filter=score.filter,
            document_ids=list(score.document_ids),
            values=list(score.document_values),
        )


def describe_limits(name: str, scores: Scores) -> Iterator[str]:
    """Format what the user must know of questions and texts that an engine could not take whole."""
    if number := scores.num_shortened:
        questions = "question is" if number == 1 else "questions are"
        yield (
            f"{name}: {number} {questions} longer than the engine's context and lost the beginning; such scores are "
            "not those of transformers"
        )
    if number := scores.num_windowed:
        texts = "text is" if number == 1 else "texts are"
        yield (
            f"{name}: {number} {texts} read in windows of {scores.window:,} tokens, as the engine takes no more; such "
            "perplexities are not those of transformers, whose windows are as long as the model's context"
        )


def _group_row(benchmark: Benchmark, index: int, scores: Mapping[str, Scores]) -> BenchmarkRow:
    teacher = scores[TEACHER]
    group = teacher.groups[index]
    parts = [teacher.find(task, group.metric, group.filter) for task in group.parts]

    def difference(model: Scores) -> Difference:
        return weighted_difference([_difference(benchmark, part, model) for part in parts], group.weights)

    higher_is_better = parts[0].higher_is_better
    same = {name: model.groups[index] for name, model in scores.items()}
    return {
        "benchmark": benchmark.name,
        "task": group.task,
        "metric": group.metric,
        "filter": group.filter,
        "arms": _with_differences(same, scores, difference, higher_is_better=higher_is_better),
        "num_documents": sum(len(part.document_ids) for part in parts),
        "tasks": len(parts),
        "higher_is_better": higher_is_better,
    }


def _task_row(benchmark: Benchmark, score: TaskScore, scores: Mapping[str, Scores]) -> BenchmarkRow:
    def difference(model: Scores) -> Difference:
        return _difference(benchmark, score, model)

    same = {name: model.find(score.task, score.metric, score.filter) for name, model in scores.items()}
    return {
        "benchmark": benchmark.name,
        "task": score.task,
        "metric": score.metric,
        "filter": score.filter,
        "arms": _with_differences(same, scores, difference, higher_is_better=score.higher_is_better),
        "num_documents": len(score.document_ids),
        "part_of": benchmark.name if scores[TEACHER].groups else None,
        "higher_is_better": score.higher_is_better,
    }


def _with_differences(
    same: Mapping[str, TaskScore] | Mapping[str, GroupScore],
    scores: Mapping[str, Scores],
    difference: Callable[[Scores], Difference],
    *,
    higher_is_better: bool,
) -> dict[str, BenchmarkScore]:
    """Return the same score of every model, with its `difference` from the teacher's."""
    arms: dict[str, BenchmarkScore] = {}
    for name, score in same.items():
        arms[name] = {"value": score.value, "stderr": score.stderr}
        if scores[name].num_answers:
            arms[name]["num_answers"], arms[name]["num_cut"] = scores[name].num_answers, scores[name].num_cut
        if name != TEACHER:
            paired = difference(scores[name])
            arms[name]["difference"] = paired.value
            arms[name]["difference_stderr"] = paired.stderr
            arms[name]["verdict"] = paired.verdict(higher_is_better=higher_is_better)
    return arms


def _difference(benchmark: Benchmark, teacher: TaskScore, model: Scores) -> Difference:
    """Compare over the documents for which both have a value."""
    by_teacher = dict(zip(teacher.document_ids, teacher.document_values, strict=True))
    score = model.find(teacher.task, teacher.metric, teacher.filter)
    by_model = dict(zip(score.document_ids, score.document_values, strict=True))
    both = [i for i in by_model if i in by_teacher]
    model_values, teacher_values = [by_model[i] for i in both], [by_teacher[i] for i in both]
    aggregation = benchmark.aggregation(teacher.task, teacher.metric)
    if aggregation is None:
        return mean_difference(model_values, teacher_values)
    return resampled_difference(model_values, teacher_values, aggregation)


def _read_cached(file: Path) -> Scores | None:
    """Return the scores kept in `file`; None where there are none, or none that are intact."""
    try:
        return Scores.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(file: Path, scores: Scores) -> None:
    """Cache `scores` in `file`; a full disk costs only the time to measure again."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(file, concurrent=True) as partial:
            partial.write_text(json.dumps(scores.to_json()))
