"""What the teacher writes for a run, and where the run puts it; only the teacher's engine is not the real one."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rayqd.config import Config
from rayqd.config.sections import DataConfig
from rayqd.console.generation_progress import GenerationProgress
from rayqd.console.progress import Progress
from rayqd.data import load_run_data, make_plan
from rayqd.data.jsonl import JsonlFile
from rayqd.data.plan import generation_seed, off_policy_examples
from rayqd.driver.seq_kd import (
    generate_completions,
    generate_teacher_completions,
    read_completions,
    replace_completions,
)
from rayqd.errors import RunError
from rayqd.model.load import load_tokenizer
from rayqd.rollout.engine import SamplingRequest
from rayqd.types import Example

ENDS = (2,)


class Teacher:
    """Answers with the seed and the length it was asked for; dies after `lives` answers."""

    def __init__(self, lives: int = 10**6) -> None:
        self.lives = lives
        self.requests: dict[int, SamplingRequest] = {}

    def generate(self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, on_completion: Any) -> None:
        for row, request in requests:
            if len(self.requests) == self.lives:
                raise InterruptedError
            self.requests[row] = request
            on_completion(row, np.asarray([request.seed, request.max_new_tokens, 2], dtype=np.int32))
        assert len(self.requests) == num_requests


def writing() -> GenerationProgress:
    return GenerationProgress(Progress(Console(file=io.StringIO()), 0), 1)


@pytest.fixture
def training(tiny_config: Any, tiny_model: Path) -> Any:
    config = tiny_config(distill={"lmbda": 0.5, "seq_kd": True}, learner={"steps": 3})
    return load_run_data(load_tokenizer(tiny_model), config, 512)[0], config


def wanted_rows(examples: list[Example], config: Config) -> list[int]:
    """Found step by step, as the pipeline goes."""
    plan = make_plan(config, [len(examples)])
    planned = [sequence for step in range(config.learner.steps) for sequence in plan.step(step)]
    return [examples[s.example].row for s in planned if not s.on_policy]


def test_the_off_policy_share_of_a_run_is_all_that_the_teacher_writes(training: Any) -> None:
    data, config = training
    plan = make_plan(config, data.sizes)
    rows = [data.examples[i].row for i in off_policy_examples(plan, config.learner.steps)]
    assert sorted(rows) == sorted(set(wanted_rows(data.examples, config)))
    assert len(rows) == 6  # half of 3 steps of 4


def test_what_was_written_stays_and_only_the_rest_is_asked_for(training: Any, tmp_path: Path) -> None:
    data, config = training
    rows = set(wanted_rows(data.examples, config))
    examples = {(0, example.row): example for example in data.examples if example.row in rows}
    file = tmp_path / "teacher.jsonl"
    first, second = Teacher(lives=2), Teacher()
    with JsonlFile(file) as lines, pytest.raises(InterruptedError):
        generate_completions(examples, ENDS, config, first, lines, writing())
    with JsonlFile(file) as lines:
        before = read_completions(lines, examples)
        assert list(before) == list(examples)[:2]
        missing = {place: example for place, example in examples.items() if place not in before}
        completions = before | generate_completions(missing, ENDS, config, second, lines, writing())
        assert read_completions(lines, examples).keys() == examples.keys()
    assert len(first.requests) + len(second.requests) == len(rows)
    for (_, row), completion in completions.items():
        assert completion.dtype == np.int32
        assert completion.tolist() == [generation_seed(config.seed, row), 12, 2]  # rollout.max_new_tokens is 12

    given = replace_completions(data, completions)
    for old, new in zip(data.examples, given.examples, strict=True):
        assert np.array_equal(old.prompt_ids, new.prompt_ids)
        expected = completions[0, old.row] if old.row in rows else old.completion_ids
        assert np.array_equal(new.completion_ids, expected)


def test_the_teacher_is_asked_as_a_rollout_is_and_for_no_more_than_fits(tiny_config: Any) -> None:
    config = tiny_config(
        data={"max_length": 64}, rollout={"min_new_tokens": 20, "max_new_tokens": 30, "temperature": 0}
    )
    prompt = np.arange(50, dtype=np.int32)
    examples = {(0, i): Example(row=i, prompt_ids=prompt[:n], completion_ids=prompt) for i, n in enumerate((10, 50))}
    teacher = Teacher()
    with JsonlFile(config.run_dir / "teacher.jsonl") as lines:
        generate_completions(examples, ENDS, config, teacher, lines, writing())
    lengths = [(r.min_new_tokens, r.max_new_tokens) for r in teacher.requests.values()]
    assert lengths == [(20, 30), (14, 14)]  # 64 - 50
    assert all(r.temperature == 0 and r.stop_token_ids == ENDS for r in teacher.requests.values())


def test_prompts_that_changed_since_are_refused(training: Any, tmp_path: Path) -> None:
    data, config = training
    example = data.examples[0]
    with JsonlFile(tmp_path / "teacher.jsonl") as lines:
        generate_completions({(0, example.row): example}, ENDS, config, Teacher(), lines, writing())
        other = Example(row=example.row, prompt_ids=example.prompt_ids[:-1], completion_ids=example.completion_ids)
        for examples in ({(0, example.row): other}, {}):
            with pytest.raises(RunError, match=rf"answers other prompts than the data has now \(row {example.row}\)"):
                read_completions(lines, examples)


def test_a_run_that_is_all_on_policy_says_that_there_is_nothing_to_write(training: Any, tiny_config: Any) -> None:
    data, _ = training
    output = io.StringIO()
    config = tiny_config(distill={"lmbda": 1.0, "seq_kd": True})
    nobody: Any = None
    same = generate_teacher_completions(data, nobody, config, nobody, Progress(Console(file=output, width=200), 0))
    assert same is data
    assert output.getvalue() == (
        "distill.seq_kd has no effect: with distill.lmbda=1 the student writes every completion itself\n"
    )


def test_rows_of_two_sources_with_one_number_are_two_prompts(
    training: Any, tiny_config: Any, tiny_model: Path, tiny_data: Path
) -> None:
    more = tiny_data.parent / "more.jsonl"
    more.write_text(tiny_data.read_text().replace("Say", "Tell"))
    config = tiny_config(distill={"lmbda": 0.0, "seq_kd": True}, learner={"steps": 16})
    sources = [{"source": str(tiny_data)}, {"source": str(more)}]
    config = config.model_copy(update={"data": DataConfig(sources=sources, max_length=128, min_room=8)})
    data, _ = load_run_data(load_tokenizer(tiny_model), config, 512)
    places = [(source, e.row) for source, part in enumerate(data.parts) for e in part.examples]
    assert len({row for _, row in places}) < len(places)
    examples = dict(zip(places, data.examples, strict=True))
    with JsonlFile(config.run_dir / "teacher.jsonl") as lines:
        written = generate_completions(examples, ENDS, config, Teacher(), lines, writing())
        again = read_completions(lines, examples)
    assert {place: ids.tolist() for place, ids in again.items()} == {p: ids.tolist() for p, ids in written.items()}
    seeds = [int(ids[0]) for ids in written.values()]
    assert len(set(seeds)) == len(places)  # each prompt is sampled by itself
    given = replace_completions(data, written)
    assert given.sizes == data.sizes
    for place, example in zip(places, given.examples, strict=True):
        assert example.completion_ids.tolist() == written[place].tolist()
