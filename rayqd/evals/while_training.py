"""Benchmarks of a student in training: what `rayqd eval` runs on its export, on the weights as they are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from pydantic import JsonValue

from rayqd.config import Config
from rayqd.data.chat_settings import chat_settings
from rayqd.errors import ConfigError, DataError, ModelError
from rayqd.evals.benchmarks import describe_limits, items_of
from rayqd.evals.harness import Benchmark, first_line, open_benchmarks
from rayqd.evals.language_model import LanguageModel
from rayqd.evals.question_batch import QuestionBatch
from rayqd.evals.scores import GroupScore, Scores, TaskScore
from rayqd.metrics.fidelity import TaskResults, TaskValue, find_value
from rayqd.model.load import load_tokenizer
from rayqd.model.out_of_memory import release_memory
from rayqd.model.source import student_directory

_NO_COPIES = "DISABLE_MULTIPROC"  # of lm-eval's


class TrainingBenchmarks:
    """`eval.tasks`, opened once and run as often as there are new weights."""

    def __init__(self, config: Config, *, joined_by_others: bool = False) -> None:
        """Open them. Raises ConfigError or DataError where there is none to run, or not the one that decides.

        `joined_by_others`: the model is that of several workers, each of which runs them at the same time.
        """
        self._best = str(config.checkpoint.best) if config.best_is_task else None
        self._joined_by_others = joined_by_others
        self._remarks: list[str] = []  # not told yet
        self._batch = QuestionBatch(
            size=config.eval.task_batch_size, can_be_lowered=not joined_by_others, tell=self._remarks.append
        )
        self.tokenizer = evaluation_tokenizer(config)
        self._benchmarks = open_benchmarks(
            config.eval, self.tokenizer, chat_settings(config.data), lambda why: self._remarks.append(f"skipped: {why}")
        )
        _check_best(config, self._benchmarks, self._remarks)

    def run(self, model: LanguageModel, name: str) -> TaskResults:
        """Score `model`, called `name`. A benchmark that fails is left out from then on, and that is told.

        All of it in this process: copies of one with threads and a GPU, as lm-eval's bootstrap makes them, may hang.
        """
        with _without_copies():
            return self._run(model, name)

    def _run(self, model: LanguageModel, name: str) -> TaskResults:
        values: list[TaskValue] = []
        items: list[Mapping[str, JsonValue]] = []
        for benchmark in list(self._benchmarks):
            failed = None
            try:
                scores = self._batch.attempt(benchmark.name, partial(benchmark.run, model))
                own = task_values(scores)
                own_items = [cast("Mapping[str, JsonValue]", each) for each in items_of(benchmark, name, scores)]
                if self._decides(benchmark):
                    self._check_value(own, name)
                values += own
                items += own_items
                self._remarks += describe_limits(benchmark.name, scores)
            except Exception as error:  # noqa: BLE001 (of lm-eval, of a task's own code, of vLLM)
                failed = self._explain(benchmark, error)
            if failed:
                self._benchmarks.remove(benchmark)
                self._remarks.append(f"skipped from now on: {failed}")
                release_memory()  # which the error's traceback no longer holds
        remarks = tuple(self._remarks)
        self._remarks.clear()
        return TaskResults(values=tuple(values), items=tuple(items), remarks=remarks)

    def _decides(self, benchmark: Benchmark) -> bool:
        names = benchmark.metric_names() if self._best else []
        return any(name.partition("/")[0] == str(self._best).partition("/")[0] for name in names)

    def _check_value(self, values: Sequence[TaskValue], name: str) -> None:
        """Raise ModelError where the value that decides is not among `values`; remark on one that is no number."""
        found = find_value(values, str(self._best))
        if found is None:
            there = ", ".join(value.name for value in values) or "nothing"
            raise ModelError(f"checkpoint.best={self._best} was not measured {name}; lm-eval returned {there}")
        if math.isnan(found.value):
            self._remarks.append(f"checkpoint.best={self._best} is nan {name}: these weights cannot be the best")

    def _explain(self, benchmark: Benchmark, error: Exception) -> str:
        """Return in a line why a benchmark failed.

        Raises ModelError where it decides which weights are the best, and `error` where other workers, whom it may have
        spared, would wait for this one in what they compute together.
        """
        if isinstance(error, ModelError):
            line = str(error)
        elif self._joined_by_others:
            raise error
        else:
            line = f"task {benchmark.name} failed: {type(error).__name__}: {first_line(error)}"
        if self._decides(benchmark):
            raise ModelError(line) from error
        return line


@contextmanager
def _without_copies() -> Iterator[None]:
    """Have lm-eval draw its bootstrap samples, the same ones, in this process."""
    before = os.environ.get(_NO_COPIES)
    os.environ[_NO_COPIES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_COPIES]
        else:
            os.environ[_NO_COPIES] = before


def check_tasks(config: Config) -> None:
    """Open the benchmarks that a run measures while training, if any; raises what `TrainingBenchmarks` does."""
    if config.eval.steps_between_tasks:
        TrainingBenchmarks(config)


def evaluation_tokenizer(config: Config) -> Any:
    """Return the model's tokenizer, with the run's chat template if it has one of its own."""
    tokenizer = load_tokenizer(student_directory(config))
    if template := chat_settings(config.data).template:
        tokenizer.chat_template = template
    return tokenizer


def task_values(scores: Scores) -> list[TaskValue]:
    """Return the metrics of a benchmark: those of its groups, which stand for their tasks, or else its tasks'."""
    found: Sequence[GroupScore | TaskScore] = scores.groups or scores.tasks
    return [
        TaskValue(
            task=score.task,
            metric=score.metric,
            filter=score.filter,
            value=score.value,
            stderr=score.stderr,
            num_documents=sum(len(part.document_ids) for part in parts),
            higher_is_better=parts[0].higher_is_better,
            num_answers=scores.num_answers,
            num_cut=scores.num_cut,
        )
        for score in found
        for parts in [_parts(score, scores)]
    ]


def _parts(score: GroupScore | TaskScore, scores: Scores) -> list[TaskScore]:
    if isinstance(score, TaskScore):
        return [score]
    return [scores.find(task, score.metric, score.filter) for task in score.parts]


def _check_best(config: Config, benchmarks: Sequence[Benchmark], skipped: Sequence[str]) -> None:
    """Raise where the benchmark by which the best weights are chosen is not there, or has no such metric."""
    best = str(config.checkpoint.best)
    if not config.best_is_task:
        return
    names = [name for benchmark in benchmarks for name in benchmark.metric_names()]
    task = best.partition("/")[0]
    own = [name for name in names if name.partition("/")[0] == task]
    if not own:
        raise DataError(f"checkpoint.best={best}: task {task} cannot be run{''.join(f'; {why}' for why in skipped)}")
    if "/" in best and best not in own:
        raise ConfigError(f"checkpoint.best={best}: task {task} has {', '.join(own)}")
