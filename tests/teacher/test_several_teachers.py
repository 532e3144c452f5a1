"""Two real teachers chosen by a column: what they send, keep and teach, against float64 forward passes of each."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rayqd.commands.evaluate import evaluate
from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.driver.preflight import check
from rayqd.errors import ConfigError, ModelError
from rayqd.evals.heldout import Heldout
from rayqd.evals.several_teachers import score_by_teacher
from rayqd.learner.learner import Learner
from rayqd.losses.output_head import Head
from rayqd.model.load import load_head
from rayqd.model.source import teacher_directories
from rayqd.model.student import Student
from rayqd.teacher.worker import TeacherWorker, teacher_loader
from rayqd.types import Example, Rollout, ScoredRollout

WIDTH, VOCAB = 192, 144  # of the other teacher; the student's are 128


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with the student's tokenizer."""
    directory = tmp_path_factory.mktemp("teachers") / "other"
    shutil.copytree(tiny_model, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(5)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=True, eos_token_id=2, pad_token_id=2, **sizes, **heads)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def make_config(tiny_model: Path, other: Path, tiny_config: Any) -> Callable[..., Config]:
    def make(teacher: dict[str, Any] | None = None, **sections: Any) -> Config:
        route = {"math": str(other), "*": str(tiny_model)}
        sections["distill"] = {"lmbda": 0.0, "beta": 0.0, **sections.get("distill", {})}
        sections["model"] = {"dtype": "float32", **sections.get("model", {})}
        return tiny_config(teacher={"column": "subject", "route": route, **(teacher or {})}, **sections)

    return make


def routed(config: Config, rollouts: list[Rollout], other: Path) -> list[Rollout]:
    """Every second one is the other teacher's."""
    number = [each.name for each in config.teachers].index(str(other))
    return [replace(rollout, teacher=number if i % 2 else 1 - number) for i, rollout in enumerate(rollouts)]


def score(config: Config, rollouts: list[Rollout]) -> list[ScoredRollout]:
    """Have each teacher's worker score its own."""
    found: dict[int, ScoredRollout] = {}
    for number in range(len(config.teachers)):
        own = [rollout for rollout in rollouts if rollout.teacher == number]
        _, payloads = TeacherWorker(number, teacher_loader(config, teacher=number), teacher=number).score(*own)
        found |= {r.index: ScoredRollout(rollout=r, payload=p) for r, p in zip(own, payloads, strict=True) if p}
    return [found[rollout.index] for rollout in rollouts]


def forward_kl(student: Any, teacher: Any, rollout: Rollout) -> torch.Tensor:
    """In float64 over the ids that both have, at each completion token, [C]."""
    ids = torch.tensor([*rollout.prompt_ids.tolist(), *rollout.completion_ids.tolist()])[None]
    places = slice(len(rollout.prompt_ids) - 1, -1)
    with torch.no_grad():
        p, q = (model(ids).logits[0, places, :128].log_softmax(-1) for model in (student, teacher))
    return (q.exp() * (q - p)).sum(-1)


@pytest.mark.parametrize("payload", ["hidden", "logits"])
def test_a_step_and_the_held_out_kl_are_those_of_each_row_s_own_teacher(
    payload: str, make_config: Any, tiny_model: Path, other: Path, make_rollouts: Any
) -> None:
    config = make_config({"payload": payload, "cache_gib": 0})
    rollouts = routed(config, make_rollouts((5, 9), (17, 3), (2, 1), (30, 14)), other)
    batch = score(config, rollouts)
    student = Student.load(tiny_model, config)
    heads: list[Head] = [load_head(directory, "float32") for directory in teacher_directories(config)]

    exact = {d: AutoModelForCausalLM.from_pretrained(d, dtype=torch.float64) for d in (tiny_model, other)}
    rounded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    for name, quantized in student.quantized_layers():
        rounded.get_submodule(name).weight.data = student.grid.dequantize(quantized).double()
    kl = [forward_kl(rounded, exact[other if i % 2 else tiny_model], r) for i, r in enumerate(rollouts)]
    swapped = [forward_kl(rounded, exact[tiny_model if i % 2 else other], r) for i, r in enumerate(rollouts)]
    expected = torch.cat(kl).mean().item()
    assert abs(torch.cat(swapped).mean().item() / expected - 1) > 0.1  # a teacher in another's place would be seen

    tolerance = 1e-4 if payload == "hidden" else 3e-3
    assert Learner(student, heads, config).step(0, batch, 27).loss == pytest.approx(expected, rel=tolerance)
    if payload == "hidden":
        own = [None if teacher.is_student else head for teacher, head in zip(config.teachers, heads, strict=True)]
        measured = Heldout(batch, own, 64).evaluate(Student.load(tiny_model, config))
        assert measured.kl_to_teacher == pytest.approx(expected, rel=1e-4)
        assert Heldout(batch, own, 64).evaluate_teacher(heads).kl_to_teacher == 0


def test_teachers_keep_their_payloads_apart(make_config: Any, other: Path, make_rollouts: Any) -> None:
    config = make_config({"payload": "sampled"}, distill={"lmbda": 1.0, "beta": 1.0})
    (rollout,) = make_rollouts((5, 9))
    found: list[list[float]] = []
    for _ in range(2):  # the second time from the disk
        for number in range(2):
            worker = TeacherWorker(number, teacher_loader(config, teacher=number), teacher=number)
            report, (payload,) = worker.score(replace(rollout, teacher=number))
            found.append(payload.logprobs.tolist())
            assert report.num_cache_hits == (len(found) > 2)
    assert found[:2] == found[2:]
    assert found[0] != found[1]


def test_rayqd_eval_scores_each_row_by_its_own_teacher_in_the_rows_order(
    make_config: Any, other: Path, make_rollouts: Any
) -> None:
    config = make_config({"cache_gib": 0})
    rollouts = routed(config, make_rollouts((5, 9), (17, 3), (2, 1)), other)
    examples = [
        Example(row=r.index, prompt_ids=r.prompt_ids, completion_ids=r.completion_ids, teacher=r.teacher)
        for r in rollouts
    ]
    rows, heads = score_by_teacher(config, examples)
    assert [row.rollout.teacher for row in rows] == [r.teacher for r in rollouts]
    assert [head.shape[1] for head in heads] == [WIDTH if each.name == str(other) else 128 for each in config.teachers]
    for row, scored in zip(rows, score(config, rollouts), strict=True):
        assert row.payload.arrays()["hidden"].bits.tolist() == scored.payload.arrays()["hidden"].bits.tolist()  # pyright: ignore


def test_the_model_itself_is_measured_at_no_distance_on_its_own_rows_alone(
    make_config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    subjects = ["math", "law", "math", "law"] * 2
    rows = [{"prompt": f"Say {i}!", "completion": f"{i}.", "subject": subject} for i, subject in enumerate(subjects)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text("Once upon a time there was a dog. " * 30)
    data = {"source": str(tmp_path / "rows.jsonl"), "max_length": 128, "min_room": 8}
    heldout = {"source": data["source"], "split": "train[:4]", "text": str(tmp_path / "text.txt")}
    config = make_config(data={**data, "split": "train[4:]"}, eval={"num_rows": 4, **heldout})
    found = evaluate(tiny_model, config, console := Console(file=io.StringIO(), width=200))
    assert found.model.by_row is not None
    assert [kl > 0.01 for kl in found.model.by_row.kl] == [subject == "math" for subject in subjects[:4]]
    assert max(abs(kl) for kl in found.model.by_row.kl[1::2]) < 1e-5
    assert found.teacher.text_perplexity is None
    said: Any = console.file
    assert f"text.txt: perplexity {found.model.text_perplexity:.4f} over" in said.getvalue()


def test_everything_is_checked_of_each_teacher(make_config: Any, tiny_model: Path, other: Path, tmp_path: Path) -> None:
    assert set(check(make_config()).forward) == {"student", f"teacher {other}"}

    foreign = tmp_path / "foreign"
    shutil.copytree(other, foreign)
    tokenizer = AutoTokenizer.from_pretrained(foreign)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(foreign)
    config = make_config({"route": {"law": str(foreign), "math": str(other), "*": str(tiny_model)}})
    with pytest.raises(ModelError, match=r"teacher .*foreign \(teacher\.route: law\) have different tokenizers"):
        check(config)


@pytest.mark.parametrize(("setting", "value"), [("tasks", ["arc_easy"]), ("continuations", 2)])
def test_what_compares_with_one_teacher_is_refused(
    setting: str, value: Any, make_config: Any, tiny_model: Path
) -> None:
    with pytest.raises(
        ConfigError, match=rf"eval\.{setting} compares with one teacher, and teacher\.route names several"
    ):
        evaluate(tiny_model, make_config(eval={setting: value}))


def test_the_model_itself_is_one_of_the_teachers_under_whatever_path(
    make_config: Any, tiny_model: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    route = {"math": str(other), "*": f"./{tiny_model.name}"}
    config = with_absolute_paths(make_config({"route": route}))
    assert config.teacher.route["*"] == str(tiny_model)
    assert [each.name for each in config.teachers if each.is_student] == [str(tiny_model)]
    assert json.dumps(config.teacher.route)  # as plain texts
