"""Benchmarks on a rollout worker's engine are those of the student, and its rollouts stay what they would have been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.evals import harness
from rayqd.evals.language_model import TransformersModel
from rayqd.evals.results import read_scores
from rayqd.evals.while_training import TrainingBenchmarks
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.metrics.fidelity import TaskResults
from rayqd.model.student import Student
from rayqd.pipeline import Weights
from rayqd.rollout.engine_makers import vllm_engine_maker
from rayqd.rollout.fake import FakeEngine
from rayqd.rollout.sampling import SamplingRules
from rayqd.rollout.tasks import EngineTasks
from rayqd.rollout.worker import RolloutWorker
from rayqd.stall import NoWatch
from rayqd.types import Example, PlannedSequence
from tests.evals.task_files import CHOICE, GENERATE, ROLLING
from tests.rollout.served_model import trained

VERSION = 3
LONG = 60  # words of a question that no engine of 512 tokens takes


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": f"{i}, say {chr(97 + i)}: ", "choices": [chr(97 + i), "no", "q"], "answer": i % 3}
        for i in range(12)
    ]
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "choice.yaml").write_text(CHOICE.format(name="choice", file=file))
    (directory / "own_words.yaml").write_text(GENERATE.format(file=file))
    (directory / "own_text.yaml").write_text(ROLLING.format(file=file))
    long = directory / "long.jsonl"
    long.write_text(json.dumps({**rows[0], "question": "a long way " * LONG}) + "\n" + json.dumps(rows[1]) + "\n")
    (directory / "too_long.yaml").write_text(CHOICE.format(name="too_long", file=long))
    (directory / "long_text.yaml").write_text(ROLLING.format(file=long).replace("own_text", "long_text"))
    return directory


@pytest.fixture
def make_config(tiny_config: Callable[..., Config], tasks_dir: Path) -> Callable[..., Config]:
    def make(**settings: Any) -> Config:
        tasks = ["choice", "own_words", "own_text", "too_long", "long_text"]
        return tiny_config(
            model={"dtype": "float32"},
            rollout={"temperature": 0.9, "top_k": 5, "stop": ["e"]},
            eval={"every": 1, "tasks": tasks, "tasks_dir": tasks_dir, "where": "rollout"} | settings,
        )

    return make


@pytest.fixture
def student(make_config: Callable[..., Config], tiny_model: Path) -> Student:
    return trained(Student.load(tiny_model, make_config()), seed=1)


@pytest.fixture
def worker(
    make_config: Callable[..., Config], student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RolloutWorker:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    config = make_config()
    tensors = collect_rollout_weights(student, config)
    return RolloutWorker(0, vllm_engine_maker(config, 1.0), lambda ref: tensors, tasks=EngineTasks(config))


def weights(version: int) -> Weights:
    return Weights(version=version, tensors=None)  # type: ignore[arg-type]


def write(worker: RolloutWorker, config: Config) -> list[list[int]]:
    sequences = [PlannedSequence(step=0, index=i, example=0, on_policy=True, seed=i) for i in range(4)]
    prompts = [
        Example(row=0, prompt_ids=np.arange(3, 19, dtype=np.int32), completion_ids=np.arange(3, 9, dtype=np.int32))
        for _ in sequences
    ]
    _, rollouts = worker.write(sequences, prompts, weights(VERSION), SamplingRules(settings=config.rollout))
    return [rollout.completion_ids.tolist() for rollout in rollouts]


def fail_in_the_middle(engine: Any) -> None:
    """Ask for answers, of which vLLM refuses the second before the first is written, and then have a step fail."""
    from vllm import SamplingParams

    short, long = (np.full(n, 3, dtype=np.int32) for n in (6, 1000))
    params = [SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)] * 2
    with pytest.raises(Exception, match="longer than the maximum"):
        engine.run([short, long], params)
    assert not engine._llm.llm_engine.has_unfinished_requests()

    def fail() -> None:
        raise MemoryError

    before, engine.on_progress = engine.on_progress, fail
    with pytest.raises(MemoryError):
        engine.run([short, short], params)
    engine.on_progress = before
    assert not engine._llm.llm_engine.has_unfinished_requests()


def values(results: TaskResults) -> dict[str, list[Any]]:
    return {f"{item['task']}/{item['metric']}": item["values"] for item in results.items}  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.vllm
def test_an_engine_scores_the_students_items_and_writes_as_before(
    worker: RolloutWorker, student: Student, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: list[Any] = []
    monkeypatch.setattr(harness, "read_scores", lambda found, *rest: samples.append(found) or read_scores(found, *rest))
    config = make_config()
    before = write(worker, config)
    results = worker.run_tasks(weights(VERSION))
    assert write(worker, config) == before
    fail_in_the_middle(worker._engine)
    assert write(worker, config) == before

    benchmarks = TrainingBenchmarks(config)
    with student.as_exported(), student.with_plain_layers():
        own = benchmarks.run(TransformersModel(student.model, benchmarks.tokenizer), "student")
    engines, students = values(results), values(own)
    assert engines.keys() == students.keys()
    for name in ("choice/acc", "choice/acc_norm", "own_words/exact_match"):
        assert engines[name] == students[name], name
        assert len(engines[name]) == 12
    assert any(engines["choice/acc"])
    # log-likelihood and words of each text: float32, whose sums are rounded in another order
    np.testing.assert_allclose(engines["own_text/word_perplexity"], students["own_text/word_perplexity"], rtol=1e-4)
    engines_words, students_words = (
        [sample["resps"] for found in half for sample in found["samples"].get("own_words", [])]
        for half in (samples[:5], samples[5:])
    )
    assert engines_words == students_words  # greedily, whatever rollout.temperature is
    assert len(engines_words) == 12
    assert [value.num_answers for value in results.values if value.task == "own_words"] == [12]
    assert [v.num_cut for v in results.values] == [v.num_cut for v in own.values]
    # three choices of the first document
    assert [remark for remark in results.remarks if "longer than the engine's context" in remark] == [
        "too_long: 3 questions are longer than the engine's context and lost the beginning; such scores are not those "
        "of transformers"
    ]
    assert [remark for remark in results.remarks if "windows" in remark] == [
        "long_text: 1 text is read in windows of 510 tokens, as the engine takes no more; such perplexities are not "
        "those of transformers, whose windows are as long as the model's context"
    ]


def test_another_engine_than_vllm_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"eval\.where=rollout needs vLLM"):
        EngineTasks(make_config())(FakeEngine(128), "after step 1", NoWatch())
