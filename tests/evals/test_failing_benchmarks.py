"""A benchmark that fails while training is left out and told; the one that decides ends the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.task import ConfigurableTask

from rayqd.config import Config
from rayqd.errors import ConfigError, ModelError
from rayqd.evals import harness
from rayqd.evals.answers import AnswerCount
from rayqd.evals.language_model import Asking, TransformersModel
from rayqd.evals.results import read_scores
from rayqd.evals.scores import Scores
from rayqd.evals.while_training import TrainingBenchmarks, check_tasks
from rayqd.metrics.fidelity import TaskResults
from rayqd.model.decoder_layers import decoder_layers
from rayqd.model.load import load_model
from rayqd.stall import NoWatch
from tests.evals.task_files import CHOICE, GENERATE

WORDS_GROUP = """\
group: words_group
task: [own_words]
aggregate_metric_list:
  - {metric: exact_match, weight_by_size: true}
"""
BY_ZERO = "{{{{ 6 // (answer - 1) }}}}"  # in the second document, as no check of the first one finds out


@pytest.fixture
def make_config(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_files: None
) -> Callable[..., Config]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    directory = tmp_path / "tasks"
    directory.mkdir()
    rows = [{"question": f"{i}: ", "choices": ["a", "no", "q"], "answer": i} for i in range(3)]
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = CHOICE.format(name="sound", file=file)
    (directory / "sound.yaml").write_text(choice)
    broken = CHOICE.replace("{{{{question}}}}", BY_ZERO).format(name="broken", file=file)
    (directory / "broken.yaml").write_text(broken)
    (directory / "own_words.yaml").write_text(GENERATE.format(file=file))
    (directory / "words_group.yaml").write_text(WORDS_GROUP)

    def make(tasks: list[str], best: str | None = None) -> Config:
        settings = {"every": 1, "tasks": tasks, "tasks_dir": directory}
        return tiny_config(model={"dtype": "float32"}, eval=settings, checkpoint={"best": best})

    return make


def measure(config: Config, **settings: Any) -> tuple[TrainingBenchmarks, TaskResults]:
    benchmarks = TrainingBenchmarks(config, **settings)
    return benchmarks, run(benchmarks, config)


def run(benchmarks: TrainingBenchmarks, config: Config) -> TaskResults:
    model = load_model(Path(config.model.name), config.model.dtype)
    return benchmarks.run(TransformersModel(model, benchmarks.tokenizer), "after step 1")


class FullMemory:
    """A model whose memory takes `room` sequences at a time."""

    def __init__(self, model: TransformersModel, room: int) -> None:
        self.model, self.room = model, room

    @contextmanager
    def answering(self, asking: Asking, answers: AnswerCount) -> Iterator[Any]:
        with self.model.answering(asking, answers) as lm:
            if asking.batch_size > self.room:
                lm._model_call = self._end
            yield lm

    @staticmethod
    def _end(*arguments: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_benchmark_without_memory_takes_fewer_questions_at_a_time(make_config: Callable[..., Config]) -> None:
    config = make_config(["sound"])
    benchmarks, enough = measure(config)
    model = load_model(Path(config.model.name), config.model.dtype)
    scarce = FullMemory(TransformersModel(model, benchmarks.tokenizer), 5)
    results = benchmarks.run(scarce, "after step 1")
    assert [value.value for value in results.values] == [value.value for value in enough.values]
    told = [
        f"sound: {n} sequences at a time did not fit in memory: from now on {n // 2} (eval.task_batch_size)"
        for n in (16, 8)
    ]
    assert [*results.remarks] == told
    assert benchmarks.run(scarce, "after step 2").remarks == ()
    scarce.room = 0
    assert (
        "skipped from now on: task sound failed: OutOfMemoryError: CUDA out of memory"
        in benchmarks.run(scarce, "after step 3").remarks[-1]
    )
    with pytest.raises(torch.OutOfMemoryError):
        TrainingBenchmarks(config, joined_by_others=True).run(scarce, "after step 1")


class Recorder(NoWatch):
    """Keeps what a watch is told of."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @contextmanager
    def working(self, *, is_first: bool = False) -> Iterator[None]:
        self.told.append("begin")
        yield
        self.told.append("end")

    def beat(self) -> None:
        self.told.append("beat")


@pytest.mark.parametrize("task", ["sound", "own_words"])
def test_a_models_work_is_watched_layer_by_layer_and_the_hosts_is_not(
    task: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, watch = make_config([task]), Recorder()
    benchmarks = TrainingBenchmarks(config)
    model = load_model(Path(config.model.name), config.model.dtype)
    scored = ConfigurableTask.process_results
    monkeypatch.setattr(
        ConfigurableTask, "process_results", lambda *given: [watch.told.append("host"), scored(*given)][1]
    )
    assert benchmarks.run(TransformersModel(model, benchmarks.tokenizer, watch), "after step 1").values
    first, last = watch.told.index("begin"), len(watch.told) - watch.told[::-1].index("end")
    assert "host" not in watch.told[first:last]
    assert watch.told.count("host") == 3  # documents
    assert set(watch.told[first:last]) == {"begin", "beat", "end"}
    assert watch.told.count("beat") % len(decoder_layers(model)) == 0
    assert not any(layer._forward_pre_hooks for layer in decoder_layers(model))


def test_bootstrap_samples_are_drawn_in_this_process(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api import metrics

    config, drawn = make_config(["sound"]), []
    file = Path(str(config.eval.tasks_dir)) / "sound.yaml"
    file.write_text(
        file.read_text().replace("metric: acc_norm, aggregation: mean", "metric: acc_norm, aggregation: median")
    )
    monkeypatch.setattr("multiprocessing.Pool", None)
    monkeypatch.setattr(metrics, "_bootstrap_internal_no_mp", lambda f, xs, n: drawn.append(list(xs)) or [0.5, 0.5])
    _, results = measure(config)
    assert [len(xs) for xs in drawn] == [3]
    assert results.remarks == ()
    assert "DISABLE_MULTIPROC" not in os.environ


@pytest.mark.parametrize("best", [None, "sound"])
def test_whatever_a_benchmark_raises_it_is_left_out_with_a_line(
    best: str | None, make_config: Callable[..., Config]
) -> None:
    config = make_config(["broken", "sound"], best)
    benchmarks, results = measure(config)
    assert [value.name for value in results.values] == ["sound/acc", "sound/acc_norm"]
    (remark,) = results.remarks
    assert remark.startswith("skipped from now on: task broken failed: ZeroDivisionError: ")
    again = run(benchmarks, config)
    assert [value.name for value in again.values] == ["sound/acc", "sound/acc_norm"]
    assert again.remarks == ()


def test_the_one_that_decides_ends_the_run(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ModelError, match="task broken failed: ZeroDivisionError: "):
        measure(make_config(["sound", "broken"], "broken/acc"))


def test_what_other_workers_may_not_have_met_is_not_left_out_here_alone(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ZeroDivisionError):
        measure(make_config(["broken", "sound"]), joined_by_others=True)


def test_a_groups_metrics_have_the_filters_of_its_tasks(make_config: Callable[..., Config]) -> None:
    config = make_config(["words_group"], "words_group/exact_match,letters")
    benchmarks, results = measure(config)
    names = [value.name for value in results.values]
    assert names == ["words_group/exact_match,letters"]
    assert [name for each in benchmarks._benchmarks for name in each.metric_names()] == names
    with pytest.raises(ConfigError, match=r"task words_group has words_group/exact_match,letters$"):
        check_tasks(make_config(["words_group"], "words_group/exact_match"))


def test_a_deciding_value_that_is_not_there_or_no_number_is_told(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_scores(change: Callable[[Scores], Scores]) -> TaskResults:
        monkeypatch.setattr(harness, "read_scores", lambda *found: change(read_scores(*found)))
        return measure(make_config(["sound"], "sound/acc_norm"))[1]

    results = with_scores(lambda s: replace(s, tasks=tuple(replace(each, value=float("nan")) for each in s.tasks)))
    assert results.remarks == ("checkpoint.best=sound/acc_norm is nan after step 1: these weights cannot be the best",)
    with pytest.raises(ModelError, match=r"sound/acc_norm was not measured after step 1; lm-eval returned sound/acc$"):
        with_scores(lambda s: replace(s, tasks=s.tasks[:1]))
