"""`rayqd eval --eval.tasks` beside lm-eval itself, which loads the same directories; what it keeps."""

import io
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rayqd.commands.evaluate import Evaluation, evaluate, load_student
from rayqd.commands.quantize import quantize
from rayqd.config.resolved import to_toml
from rayqd.export.load import load_export
from rayqd.export.write import export
from rayqd.learner.checkpoint import Checkpoints
from rayqd.model.student import Student
from tests.evals.task_files import CHOICE, GENERATE, GROUP, ROLLING, write_choices


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tasks and a group of two of them."""
    directory = tmp_path_factory.mktemp("tasks")
    write_choices(directory, "first", 24)
    write_choices(directory, "second", 9)
    (directory / "own_words.yaml").write_text(GENERATE.format(file=directory / "first.jsonl"))
    (directory / "own_text.yaml").write_text(ROLLING.format(file=directory / "first.jsonl"))
    (directory / "own_group.yaml").write_text(GROUP)
    return directory


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rounded_run(tiny_config: Callable[..., Any], own_cache: None) -> Callable[..., Any]:
    """A function that makes a run rounded to nearest; returns its configuration with those settings of [eval]."""

    def make(**settings: Any) -> Any:
        config = tiny_config(quant={"method": "rtn"})
        quantize(config, Console(file=io.StringIO()))
        return tiny_config(quant={"method": "rtn"}, eval=settings)

    return make


def run(path: Path, config: Any) -> tuple[Evaluation, str]:
    output = io.StringIO()
    return evaluate(path, config, Console(file=output, width=80)), output.getvalue()


def lm_eval_says(directory: Path, tasks: list[str], include: Path, **settings: Any) -> Any:
    """What lm-eval finds out about a model directory without rayqd."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return simple_evaluate(
            model="hf",
            model_args={"pretrained": str(directory)},
            tasks=tasks,
            batch_size=16,
            device="cpu",
            task_manager=TaskManager(include_path=str(include), include_defaults=False),
            **settings,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "settings"),
    [
        (["own_group", "own_text"], {}),
        (["own_words"], {"num_fewshot": 2, "apply_chat_template": True}),
    ],
)
def test_the_table_has_the_numbers_of_lm_eval_alone(
    tasks: list[str],
    settings: dict[str, Any],
    rounded_run: Callable[..., Any],
    tasks_dir: Path,
    tiny_model: Path,
    few_files: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # five seconds of pip
    config = rounded_run(tasks=tasks, tasks_dir=tasks_dir, **settings)
    result, output = run(config.run_dir, config)
    lm_eval = {
        "teacher": lm_eval_says(tiny_model, tasks, tasks_dir, **settings),
        "student": lm_eval_says(config.run_dir / "export", tasks, tasks_dir, **settings),
    }
    rows: Any = result.benchmarks
    metrics = {f"{row['metric']},{row['filter']}" for row in rows}
    assert metrics == (
        {"acc,none", "acc_norm,none", "word_perplexity,none"} if len(tasks) > 1 else {"exact_match,letters"}
    )
    for row in rows:
        key = f"{row['metric']},{row['filter']}"
        for arm, said in lm_eval.items():
            theirs = said["results"][row["task"]]
            assert row["arms"][arm]["value"] == pytest.approx(theirs[key], rel=1e-9)
            stderr = theirs[f"{row['metric']}_stderr,{row['filter']}"]
            assert row["arms"][arm]["stderr"] == (None if stderr == "N/A" else pytest.approx(stderr, rel=1e-9))
        # Nothing was trained: the export is the model rounded to nearest.
        assert row["arms"]["student"] == row["arms"]["round-to-nearest INT4"]
    for task, samples in lm_eval["teacher"]["samples"].items():
        for metric in {"acc", "acc_norm", "exact_match"} & samples[0].keys():
            row = next(row for row in rows if (row["task"], row["metric"]) == (task, metric))
            differences = [
                float(ours[metric]) - float(theirs[metric])
                for theirs, ours in zip(samples, lm_eval["student"]["samples"][task], strict=True)
            ]
            mean = sum(differences) / len(differences)
            variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
            assert row["num_documents"] == len(differences)
            assert row["arms"]["student"]["difference"] == pytest.approx(mean, abs=1e-12)
            assert row["arms"]["student"]["difference_stderr"] == pytest.approx(
                math.sqrt(variance / len(differences)), abs=1e-12
            )
    kept = json.loads((config.run_dir / "eval" / "tiny-benchmarks.json").read_text())
    assert (kept["rows"], kept["tasks"]) == (rows, tasks)
    items = [json.loads(line) for line in (config.run_dir / "eval" / "tiny-items.jsonl").read_text().splitlines()]
    by_task = {(item["model"], item["task"], item["metric"]): item["values"] for item in items}
    for arm, said in lm_eval.items():
        for task, samples in said["samples"].items():
            for metric in {"acc", "acc_norm", "exact_match"} & samples[0].keys():
                assert by_task[arm, task, metric] == [float(sample[metric]) for sample in samples]
    shown = f"{rows[0]['arms']['student']['value']:.4f} ± "
    assert shown in (config.run_dir / "report.html").read_text()
    assert shown in (config.run_dir / "export" / "README.md").read_text()
    assert "against teacher" in output
    assert max(map(len, output.partition("benchmarks:")[2].partition("±")[0].splitlines())) <= 80
    if len(tasks) > 1:
        group, first, second = (
            next(row for row in rows if (row["task"], row["metric"]) == (task, "acc"))["arms"]["student"]
            for task in ("own_group", "first", "second")
        )
        errors = first["difference_stderr"] * 24 / 33, second["difference_stderr"] * 9 / 33
        assert group["difference_stderr"] == pytest.approx(math.hypot(*errors))
        assert group["difference"] == pytest.approx(group["value"] - rows[0]["arms"]["teacher"]["value"])
        assert "own_group:" in output
        assert "first: acc" not in output  # the group stands for it


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_scores_each_document_as_transformers_does(
    tiny_config: Callable[..., Any], own_cache: None, tasks_dir: Path, few_files: None
) -> None:
    def config(backend: str) -> Any:
        settings = {"tasks": ["first", "own_words"], "tasks_dir": tasks_dir, "backend": backend}
        return tiny_config(model={"dtype": "float32"}, quant={"method": "rtn"}, eval=settings)

    quantize(config("vllm"), Console(file=io.StringIO()))
    items: dict[str, list[Any]] = {}
    for backend in ("vllm", "transformers"):
        result, output = run(config(backend).run_dir, config(backend))
        assert "known from before" not in output
        assert ("vLLM runs" in output) == (backend == "vllm")  # there is no 4-bit kernel for float32
        lines = (config(backend).run_dir / "eval" / "tiny-items.jsonl").read_text().splitlines()
        items[backend] = [json.loads(line) for line in lines]
        written = [row["arms"] for row in result.benchmarks if row["task"] == "own_words"]
        assert {arm.get("num_answers") for arms in written for arm in arms.values()} == {24}
    assert items["vllm"] == items["transformers"]
    assert {item["model"] for item in items["vllm"]} == {"teacher", "round-to-nearest INT4", "student"}
    assert (
        json.loads((config("vllm").run_dir / "eval" / "tiny-benchmarks.json").read_text())["backend"] == "transformers"
    )


@pytest.mark.slow
def test_the_shipped_task_runs_offline_and_the_teacher_answers_once(
    rounded_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = rounded_run(tasks=["quickstart_words"], task_limit=6)
    first, output = run(config.run_dir, config)
    assert "teacher: quickstart_words in" in output
    assert [row["num_documents"] for row in first.benchmarks] == [6]
    again, output = run(config.run_dir, config)
    assert "teacher: quickstart_words known from before" in output
    assert "round-to-nearest INT4: quickstart_words known from before" in output
    assert "student: quickstart_words in" in output
    assert again == first
    other = config.model_copy(update={"eval": config.eval.model_copy(update={"task_limit": 5, "rtn": False})})
    result, output = run(config.run_dir, other)
    assert "known from before" not in output
    assert list(result.benchmarks[0]["arms"]) == ["teacher", "student"]


def test_other_documents_in_the_same_file_are_asked_anew(tmp_path: Path, tasks_dir: Path) -> None:
    from rayqd.config.sections import EvalConfig
    from rayqd.evals.harness import open_benchmarks

    file = tmp_path / "rows.jsonl"
    (tmp_path / "mine.yaml").write_text(CHOICE.format(name="mine", file=file))
    settings = EvalConfig(tasks=["mine"], tasks_dir=tmp_path)
    fingerprints = []
    for answer in (0, 0, 1):
        file.write_text(json.dumps({"question": "a", "choices": ["b", "c"], "answer": answer}) + "\n")
        fingerprints.append(open_benchmarks(settings, tokenizer=None)[0].fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_checkpoint_with_adapters_outside_is_measured_as_it_would_be_exported(
    tiny_config: Callable[..., Any], tiny_model: Path, own_cache: None
) -> None:
    config = tiny_config(adapter={"placement": "outside"})
    student = Student.load(tiny_model, config)
    torch.manual_seed(1)
    for name, parameter in student.parameters().items():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.05)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.toml").write_text(to_toml(config))
    path = Checkpoints(config.run_dir / "checkpoints", keep=1).save(1, {"student": student.state_dict()})
    export(student, tiny_model, config, config.run_dir / "export")

    ids = torch.randint(3, 128, (1, 40))
    of_checkpoint, of_export = (
        model(input_ids=ids, lengths=[ids.shape[1]]).logits.float()
        for model in (load_student(path, config), load_export(config.run_dir / "export", config.model.dtype))
    )
    assert torch.equal(of_checkpoint, of_export)
    with torch.no_grad():
        outside = student.model(input_ids=ids, lengths=[ids.shape[1]]).logits.float()
        assert not torch.allclose(outside, of_export, atol=0.05)

    measured, _ = run(path, config)
    exported, _ = run(config.run_dir, config)
    assert measured.model == exported.model
    assert measured.model.kl_to_teacher > 0
    assert {file.name for file in (config.run_dir / "eval").iterdir()} == {"step-000001.json", "tiny.json"}
