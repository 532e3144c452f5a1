"""Answers that a limit of tokens cut are counted, and tasks that cannot be had are left out by name."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rayqd.config.sections import EvalConfig
from rayqd.console.benchmark_table import cut_answers
from rayqd.errors import DataError
from rayqd.evals.benchmarks import TEACHER, BenchmarkRunner
from rayqd.evals.harness import open_benchmarks
from rayqd.evals.language_model import TransformersModel
from rayqd.model.load import load_model, load_tokenizer
from tests.evals.task_files import GENERATE

LIMIT = 8  # GENERATE's max_gen_toks
STOP = "!"  # and its `until`


@pytest.fixture
def tasks_dir(tmp_path: Path) -> Path:
    rows = [{"question": f"say {chr(97 + i)} {i}: ", "choices": ["a", "no"], "answer": i % 2} for i in range(10)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_words.yaml").write_text(GENERATE.format(file=file))
    (tmp_path / "far.yaml").write_text(
        GENERATE.format(file="x").replace("own_words", "far").replace(": json", ": someone/something")
    )
    return tmp_path


def count_cut(directory: Path, questions: list[str]) -> int:
    """Each question alone, by transformers' own greedy search: neither an end of text nor a stop within the limit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    number = 0
    for question in questions:
        ids = tokenizer(question, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=LIMIT, do_sample=False)[0, ids.shape[1] :]
        is_ended = tokenizer.eos_token_id in written or STOP in tokenizer.decode(written)
        number += len(written) == LIMIT and not is_ended
    return number


@pytest.mark.slow
def test_cut_answers_are_those_that_reach_the_limit_without_an_end(
    tasks_dir: Path, tiny_model: Path, few_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    settings = EvalConfig(tasks=["own_words"], tasks_dir=tasks_dir)
    tokenizer = load_tokenizer(tiny_model)
    benchmarks = open_benchmarks(settings, tokenizer)
    runner = BenchmarkRunner(benchmarks, tokenizer, print, settings.task_batch_size)
    model = TransformersModel(load_model(tiny_model, "float32"), tokenizer)
    scores = runner.score(TEACHER, lambda: nullcontext(model), ["a model"])
    found = scores["own_words"]
    questions = [json.loads(line)["question"] for line in (tasks_dir / "rows.jsonl").read_text().splitlines()]
    assert (found.num_answers, found.num_cut) == (10, count_cut(tiny_model, questions))

    def load() -> Any:
        raise AssertionError("its answers were kept")

    assert runner.score(TEACHER, load, ["a model"]) == scores
    (row,) = runner.compare({TEACHER: scores, "student": scores})
    lines = cut_answers([row])
    assert lines == (
        [
            "own_words: answers cut at the task's limit of tokens, and scored as they stand: "
            f"{found.num_cut} of 10 of teacher, {found.num_cut} of 10 of student"
        ]
        if found.num_cut
        else []
    )


def test_a_task_whose_documents_cannot_be_had_is_skipped_by_name(
    tasks_dir: Path, tiny_model: Path, few_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tokenizer = load_tokenizer(tiny_model)
    skipped: list[str] = []
    both = EvalConfig(tasks=["far", "own_words"], tasks_dir=tasks_dir)
    opened = open_benchmarks(both, tokenizer, on_skipped=skipped.append)
    assert [benchmark.name for benchmark in opened] == ["own_words"]
    assert len(skipped) == 1
    assert skipped[0].startswith("task far ")
    with pytest.raises(DataError, match="task far "):
        open_benchmarks(EvalConfig(tasks=["far"], tasks_dir=tasks_dir), tokenizer, on_skipped=skipped.append)
