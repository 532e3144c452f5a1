"""lm-eval's own tasks over documents in local files: the same questions, and the same answers as by lm-eval alone."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.config.sections import EvalConfig
from rayqd.errors import ConfigError, DataError
from rayqd.evals.harness import open_benchmarks
from rayqd.evals.language_model import LanguageModel, TransformersModel
from rayqd.evals.local_data import STUDY, expand, write_task_files
from rayqd.evals.scores import Scores
from rayqd.model.load import load_model, load_tokenizer
from rayqd.model.source import local_directory
from rayqd.rollout.engine_makers import benchmark_engine
from rayqd.rollout.language_model import EngineModel

ARC = [
    {
        "question": f"Which is number {i}?",
        "choices": {"text": ["this", "that", "neither"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[i % 3],
    }
    for i in range(4)
]
REAL = Path(os.environ.get("RAYQD_SHARED_DATA", "unknown"))

# lm-eval's two tasks, written down once more.
BY_HAND = {
    "arc_easy": """\
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices.text}}"
doc_to_target: "{{choices.label.index(answerKey)}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "winogrande": """\
doc_to_text: "{{ answer | int - 1 }}"
doc_to_choice: "{{ [sentence.split('_')[0] + option1, sentence.split('_')[0] + option2] }}"
doc_to_target: "{{ sentence.split('_', 1)[1].strip() }}"
metric_list: [{metric: acc}]
""",
}
FILES = {"arc_easy": "arc_easy_test.jsonl", "winogrande": "winogrande_val.jsonl"}


class NoTemplate:
    chat_template = None


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_study_stands_for_its_five_tasks_each_once() -> None:
    assert expand(["winogrande", "study", "gsm8k"]) == [
        "winogrande",
        "hellaswag",
        "arc_easy",
        "arc_challenge",
        "mmlu",
        "gsm8k",
    ]
    assert len(STUDY) == 5


def test_a_task_reads_the_file_and_keeps_its_own_question_and_choices(
    tmp_path: Path, few_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = EvalConfig(
        tasks=["arc_easy", "arc_challenge"], local_data={"arc_easy": str(write(tmp_path / "a.jsonl", ARC))}
    )
    skipped: list[str] = []
    opened, again = (open_benchmarks(settings, NoTemplate(), on_skipped=skipped.append) for _ in range(2))
    assert [each.name for each in opened] == ["arc_easy"]  # the other one is on the hub
    assert "task arc_challenge" in skipped[0]
    assert opened[0].fingerprint == again[0].fingerprint
    task = opened[0]._loaded["tasks"]["arc_easy"]
    docs = list(task.eval_docs)
    assert [task.doc_to_text(doc) for doc in docs] == [f"Question: Which is number {i}?\nAnswer:" for i in range(4)]
    assert [task.doc_to_target(doc) for doc in docs] == [0, 1, 2, 0]
    assert task.doc_to_choice(docs[0]) == ["this", "that", "neither"]


def test_two_directories_with_files_of_one_name_have_task_files_of_their_own(
    tmp_path: Path, few_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "arc.jsonl", ARC)
        monkeypatch.chdir(tmp_path / name)
        written.append(write_task_files({"arc_easy": "arc.jsonl"}))
    assert [
        str(tmp_path / name) in (each / "arc_easy.yaml").read_text()
        for name, each in zip(("one", "other"), written, strict=True)
    ] == [True, True]
    assert written[0] != written[1]


def test_a_file_of_one_task_leaves_its_tag_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    directory = write_task_files({"arc_easy": str(write(tmp_path / "a.jsonl", ARC))})
    assert "ai2_arc" not in TaskManager(include_path=[directory], include_defaults=False).task_index


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [ARC[0], {**ARC[1], "answerKey": None}],
            r"a\.jsonl, line 2: has no field answerKey, which task arc_easy reads",
        ),
        ([ARC[0], {"question": "?"}], r"line 2: has no field choices, which task arc_easy reads"),
        ([ARC[0], {**ARC[1], "answerKey": ""}], r"line 2: has no field answerKey, which task arc_easy reads"),
        ([ARC[0], [1]], r"line 2: is no object"),
    ],
)
def test_a_line_that_lacks_something_is_named(tmp_path: Path, rows: list[Any], told: str) -> None:
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=told):
        open_benchmarks(EvalConfig(tasks=["arc_easy"], local_data={"arc_easy": str(file)}), NoTemplate())


def test_a_file_of_a_task_that_is_not_asked_is_refused(tmp_path: Path) -> None:
    settings = EvalConfig(tasks=["winogrande"], local_data={"arc_easy": "a.jsonl"})
    with pytest.raises(ConfigError, match=r"eval\.local_data: arc_easy is not among eval\.tasks \(winogrande\)"):
        open_benchmarks(settings, NoTemplate())


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"eval\.local_data, arc_easy: .*none\.jsonl cannot be read"):
        open_benchmarks(
            EvalConfig(tasks=["arc_easy"], local_data={"arc_easy": str(tmp_path / "none.jsonl")}), NoTemplate()
        )


def test_the_longest_answer_is_the_tasks_own_unless_it_is_set(tmp_path: Path) -> None:
    file = write(tmp_path / "g.jsonl", [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}] * 6)
    local = {"gsm8k": str(file)}
    own, longer = (
        open_benchmarks(EvalConfig(tasks=["gsm8k"], local_data=local, task_max_new_tokens=number), NoTemplate())[0]
        for number in (None, 4096)
    )
    kwargs = [each._loaded["tasks"]["gsm8k"].config.generation_kwargs for each in (own, longer)]
    assert kwargs[0].get("max_gen_toks") != 4096
    assert kwargs[1] == {**kwargs[0], "max_gen_toks": 4096}
    assert own.fingerprint != longer.fingerprint


@pytest.fixture(scope="module")
def real_files() -> dict[str, str]:
    files = {name: REAL / file for name, file in FILES.items()}
    if absent := [file for file in files.values() if not file.is_file()]:
        pytest.skip(f"{absent[0]} is not there")
    return {name: str(file) for name, file in files.items()}


@pytest.fixture(scope="module")
def by_backend(real_files: dict[str, str]) -> Iterator[Callable[[str, str], Scores]]:
    """A function of backend and task: what the dense model scores on eight documents, as rayqd runs it."""
    settings = EvalConfig(tasks=[*FILES], local_data=real_files, task_limit=8)
    directory = local_directory("smollm2-135m")
    tokenizer = load_tokenizer(directory)
    benchmarks = {each.name: each for each in open_benchmarks(settings, tokenizer)}
    config = Config(model={"name": "smollm2-135m", "dtype": "float32"}, rollout={"max_concurrent": 16}, eval=settings)
    with ExitStack() as stack:

        @cache
        def model(backend: str) -> LanguageModel:
            if backend == "transformers":
                return TransformersModel(load_model(directory, "float32"), tokenizer)
            return EngineModel(stack.enter_context(benchmark_engine(directory, config)), tokenizer)

        yield lambda backend, name: benchmarks[name].run(model(backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
@pytest.mark.parametrize("name", [*BY_HAND])
def test_the_dense_model_answers_each_document_as_by_lm_eval_alone(
    name: str,
    backend: str,
    by_backend: Callable[[str, str], Scores],
    real_files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # five seconds of pip
    file, directory = real_files[name], local_directory("smollm2-135m")
    ours = by_backend(backend, name)
    assert ours.num_shortened == 0
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {file}}}\ntest_split: train\n"
    head = f"task: by_hand\noutput_type: multiple_choice\n{data}"
    (tmp_path / "by_hand.yaml").write_text(head + BY_HAND[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs: Any = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(directory), "dtype": "float32"},
            tasks=["by_hand"],
            batch_size=16,
            device="cpu",
            limit=8,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        )
    samples = theirs["samples"]["by_hand"]
    assert len(samples) == 8
    for score in ours.tasks:
        assert list(score.document_values) == [float(sample[score.metric]) for sample in samples]
        assert any(score.document_values)
