"""Benchmarks of a student in training are those of its export by lm-eval alone, and training does not notice them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rayqd.config import Config, differences
from rayqd.errors import ConfigError, DataError
from rayqd.evals.while_training import TrainingBenchmarks, check_tasks
from rayqd.events import EvalEvent, FinishedEvent, NoticeEvent, from_json, to_json
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.evaluations import Evaluations
from rayqd.learner.worker import LearnerWorker
from rayqd.metrics.fidelity import Fidelity, TaskValue
from rayqd.types import ScoredRollout
from tests.evals.task_files import CHOICE, GENERATE, GROUP, write_choices
from tests.learner.fake_feed import FakeFeed, scored_rows

STEPS = 4


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    write_choices(directory, "first", 24)
    write_choices(directory, "second", 9)
    (directory / "own_words.yaml").write_text(GENERATE.format(file=directory / "first.jsonl"))
    (directory / "own_group.yaml").write_text(GROUP)
    (directory / "far.yaml").write_text(CHOICE.format(name="far", file="x").replace(": json", ": someone/something"))
    return directory


@pytest.fixture
def rows(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    return scored_rows(tiny_model, make_rollouts((5, 9), (17, 3), (7, 3)))


@pytest.fixture
def make_config(tiny_config: Callable[..., Config], tasks_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def make(**sections: Any) -> Config:
        given = {"tasks": ["first", "own_words"], "tasks_dir": tasks_dir, "every": 1, "tasks_every": 2}
        return tiny_config(
            **{
                "model": {"dtype": "float32"},
                "learner": {"steps": STEPS, "lr": 0.02, "gradient_checkpointing": True},
                **sections,
                "eval": given | sections.get("eval", {}),
            }
        )

    return make


def run(config: Config, rows: list[ScoredRollout]) -> FakeFeed:
    feed = FakeFeed(rows)
    LearnerWorker(config, feed, SingleProcess(), node="here").run()
    return feed


def evaluations(feed: FakeFeed) -> dict[int, EvalEvent]:
    return {event.step: event for event in feed.events if isinstance(event, EvalEvent) and event.step}


def lm_eval_says(directory: Path, tasks: list[str], include: Path) -> Any:
    """What lm-eval finds out about a model directory without rayqd."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return simple_evaluate(
            model="hf",
            model_args={"pretrained": str(directory), "dtype": "float32"},
            tasks=tasks,
            batch_size=16,
            device="cpu",
            task_manager=TaskManager(include_path=str(include), include_defaults=False),
        )


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["inside", "outside"])
def test_the_items_are_those_of_the_export_by_lm_eval_alone(
    placement: str,
    make_config: Any,
    rows: list[ScoredRollout],
    tasks_dir: Path,
    few_files: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # five seconds of pip
    config = make_config(adapter={"placement": placement})
    feed = run(config, rows)
    by_step = evaluations(feed)
    assert {step: bool(event.fidelity.tasks) for step, event in by_step.items()} == {
        1: False,
        2: True,
        3: False,
        4: True,
    }
    said = lm_eval_says(config.run_dir / "export", ["first", "own_words"], tasks_dir)
    last = by_step[STEPS]
    checked = 0
    for item in last.items:
        samples = [each for each in said["samples"][item["task"]] if each["filter"] == item["filter"]]
        assert item["document_ids"] == [sample["doc_id"] for sample in samples]
        assert item["values"] == [float(sample[item["metric"]]) for sample in samples]
        checked += 1
    assert checked == 3  # acc, acc_norm, exact_match
    for value in last.fidelity.tasks:
        theirs = said["results"][value.task]
        assert value.value == pytest.approx(theirs[f"{value.metric},{value.filter}"], abs=1e-12)
        assert value.stderr == pytest.approx(theirs[f"{value.metric}_stderr,{value.filter}"], abs=1e-12)
        assert value.num_documents == 24
    (written,) = [each for each in last.fidelity.tasks if each.task == "own_words"]
    assert written.num_answers == 24
    assert written.num_cut > 0  # a random model seldom ends within eight tokens
    assert by_step[2].items != last.items  # else the weights of some other step might have been measured
    assert from_json(to_json(last, 1.0)) == replace(last, items=())  # as metrics.jsonl keeps it


@pytest.mark.slow
def test_training_goes_on_as_if_nothing_had_been_asked(
    make_config: Any, rows: list[ScoredRollout], few_files: None
) -> None:
    exports = []
    for name, settings in (("asked", {}), ("silent", {"tasks_every": 0})):
        config = make_config(name=name, eval=settings)
        feed = run(config, rows)
        assert any(event.items for event in evaluations(feed).values()) == (name == "asked")
        exports.append((config.run_dir / "export" / "model.safetensors").read_bytes())
    assert exports[0] == exports[1]


@pytest.mark.slow
def test_what_cannot_be_had_is_told_once_and_is_no_zero(
    make_config: Any, rows: list[ScoredRollout], few_files: None
) -> None:
    feed = run(make_config(eval={"tasks": ["own_group", "far"], "tasks_every": 1}), rows)
    told = [event.text for event in feed.events if isinstance(event, NoticeEvent)]
    assert [text.startswith("skipped: task far needs a data set") for text in told] == [True]
    for event in evaluations(feed).values():
        assert [value.name for value in event.fidelity.tasks] == ["own_group/acc"]  # the group stands for its tasks
        assert event.fidelity.tasks[0].num_documents == 33


@pytest.mark.slow
def test_the_weights_that_a_benchmark_likes_best_are_exported(
    make_config: Any, rows: list[ScoredRollout], few_files: None
) -> None:
    config = make_config(eval={"tasks_every": 1}, checkpoint={"best": "first/acc_norm"})
    feed = run(config, rows)
    values = {step: event.fidelity.find_task("first/acc_norm") for step, event in evaluations(feed).items()}
    scores = {step: value.value for step, value in values.items() if value is not None}
    assert [*scores] == [1, 2, 3, 4]
    best = max(scores, key=lambda step: scores[step])  # the first one of several
    (finished,) = [event for event in feed.events if isinstance(event, FinishedEvent)]
    assert finished.exported_step == best


@pytest.mark.parametrize(
    ("settings", "best", "error", "told"),
    [
        ({}, "first/f1", ConfigError, "checkpoint.best=first/f1: task first has first/acc, first/acc_norm"),
        (
            {"tasks": ["first", "far"]},
            "far",
            DataError,
            "checkpoint.best=far: task far cannot be run; skipped: task far ",
        ),
        ({"tasks": ["frist"]}, None, ConfigError, 'there is no task "frist"'),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(
    settings: Any, best: str | None, error: type[Exception], told: str, make_config: Any, few_files: None
) -> None:
    with pytest.raises(error, match=told.replace(".", r"\.")):
        check_tasks(make_config(eval=settings, checkpoint={"best": best}))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"eval": {"every": 2, "tasks_every": 3}}, "tasks_every=3 is no multiple of every=2"),
        ({"checkpoint": {"best": "first"}, "eval": {"every": 1}}, "nor one of eval.tasks"),
        (
            {"checkpoint": {"best": "first"}, "eval": {"every": 1, "tasks": ["first"], "tasks_every": 0}},
            "eval.tasks_every=0 runs none while training",
        ),
        (
            {"distill": {"lmbda": 0.0}, "eval": {"every": 1, "tasks": ["first"], "where": "rollout"}},
            "distill.lmbda=0 has none",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Config(**sections)


def test_the_documents_matter_to_a_run_that_goes_on_where_a_benchmark_decides() -> None:
    plain = [Config(eval={"every": 5, "tasks": ["first"], "task_limit": n}) for n in (5, 6)]
    assert differences(*plain) == []
    deciding = [
        Config(eval={"every": 5, "tasks": ["first"], "task_limit": n}, checkpoint={"best": "first"}) for n in (5, 6)
    ]
    assert differences(*deciding) == ["eval.task_limit: 5 -> 6"]


def measured(value: float | None, *, higher: bool = True) -> Fidelity:
    tasks = (
        []
        if value is None
        else [
            TaskValue(
                task="first",
                metric="m",
                filter="none",
                value=value,
                stderr=None,
                num_documents=9,
                higher_is_better=higher,
            )
        ]
    )
    return Fidelity(
        kl_to_teacher=1.0, total_variation=0.5, top1_agreement=0.5, perplexity=2.0, num_tokens=1, tasks=tuple(tasks)
    )


@pytest.mark.parametrize(("higher", "best"), [(True, 4), (False, 2)])
def test_a_benchmark_decides_by_its_own_evaluations_alone_and_in_its_own_direction(
    higher: bool, best: int, tmp_path: Path
) -> None:
    config = Config(
        learner={"steps": 10},
        eval={"every": 1, "tasks": ["first"], "tasks_every": 2, "patience": 2},
        checkpoint={"best": "first/m"},
    )
    found = Evaluations(config)
    values = {1: None, 2: 0.25, 3: None, 4: 0.75, 5: None, 6: 0.5}
    for step, value in values.items():
        assert found.lack(step) == (step % 2 == 0)
        found.add(step, measured(value, higher=higher))
    assert found.best is not None
    assert found.best.step == best
    (tmp_path / "evaluations.json").write_text(found.to_text())
    resumed = Evaluations(config)
    resumed.load(tmp_path)
    assert resumed.best == found.best
    reasons = [resumed.reason_to_end]
    resumed.add(8, measured(0.5, higher=higher))
    reasons.append(resumed.reason_to_end)
    # Higher is better: nothing better than after step 4 in one evaluation, then in two. Lower: than after step 2.
    assert [bool(reason) for reason in reasons] == ([False, True] if higher else [True, True])


def test_every_module_has_the_mode_again_that_it_had(make_config: Any, tiny_model: Path, few_files: None) -> None:
    from rayqd.evals.language_model import TransformersModel
    from rayqd.model.student import Student

    config = make_config(eval={"tasks": ["second"]})
    student = Student.load(tiny_model, config)
    before = [(name, module.training, type(module)) for name, module in student.model.named_modules()]
    drawn = torch.get_rng_state()
    assert any(training for _, training, _ in before)
    benchmarks = TrainingBenchmarks(config)
    with student.as_exported(), student.with_plain_layers():
        assert not any(type(module).__module__.startswith("rayqd.") for module in student.model.modules())
        benchmarks.run(TransformersModel(student.model, benchmarks.tokenizer), "student")
    assert [(name, module.training, type(module)) for name, module in student.model.named_modules()] == before
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), drawn)
