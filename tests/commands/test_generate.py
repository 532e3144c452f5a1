"""A data set that a model writes: interrupted anywhere it goes on, and what comes out is what would have come out."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rayqd.commands.generate import AnswerJob, generate, resolve_model, run_together
from rayqd.config import Config
from rayqd.console.generation_progress import GenerationProgress
from rayqd.console.progress import Progress
from rayqd.data.completion_file import CompletionFile
from rayqd.data.prompts import Prompts
from rayqd.data.stops import end_token_ids
from rayqd.errors import ConfigError, DataError, ModelError, RunError
from rayqd.model.load import load_tokenizer
from rayqd.rollout.fake import FakeEngine
from rayqd.types import IntArray


class KilledError(Exception):
    """Stands for SIGKILL: nothing after it runs."""


class OneProcess:
    """An engine here instead of actors; answers backwards in blocks of eight, and dies after `lives` answers."""

    def __init__(self, lives: int | None = None, empty: int | None = None) -> None:
        self.engine = FakeEngine(110)  # the tokenizer knows 98 of them
        self.lives = lives
        self.empty = empty  # a row that gets nothing but an end
        self.asked: list[int] = []

    def generate(self, requests: Iterator[Any], num_requests: int, on_completion: Any) -> None:
        left = list(requests)
        assert len(left) == num_requests
        for start in range(0, len(left), 8):
            for row, request in reversed(left[start : start + 8]):
                if len(self.asked) == self.lives:
                    raise KilledError
                self.asked.append(row)
                completion: IntArray = self.engine.generate([request])[0].token_ids
                on_completion(row, np.asarray([2], dtype=np.int32) if row == self.empty else completion)


@pytest.fixture
def answer(tiny_config: Any, tiny_model: Path, tmp_path: Path) -> Any:
    """Has `generator` answer the tiny data; returns the file's rows."""
    tokenizer = load_tokenizer(tiny_model)

    def run(generator: OneProcess, name: str = "a.jsonl", num_rows: int | None = None, **sections: Any) -> Any:
        config: Config = tiny_config(**sections)
        settings = {"rollout.temperature": config.rollout.temperature, "weights": "1234"}
        prompts = Prompts(tokenizer, config, 512)
        with CompletionFile(tmp_path / name, settings=settings, command="rayqd generate") as file:
            file.read(prompts)
            ends = end_token_ids(tokenizer, tiny_model)
            job = AnswerJob(config, tokenizer, ends, prompts, file, num_rows)
            progress = Progress(Console(file=io.StringIO()), 0)
            if not job.is_done:
                run_together([job], generator, GenerationProgress(progress, job.num_prompts, job.num_before))
            file.finish(prompts.order)
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    return run


def about(tmp_path: Path, name: str = "a") -> dict[str, Any]:
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_an_interrupted_file_goes_on_and_ends_as_one_that_was_not(answer: Any, tmp_path: Path) -> None:
    whole = answer(OneProcess(), "whole.jsonl")
    assert sorted(row["row"] for row in whole) == list(range(40))
    assert all(row["messages"][0]["content"].startswith("Say ") for row in whole)

    first, second, third = OneProcess(lives=5), OneProcess(lives=18), OneProcess()
    for generator in (first, second):
        with pytest.raises(KilledError):
            answer(generator)
        with (tmp_path / "a.jsonl").open("a") as torn:
            torn.write('{"messages": [{"role": "us')
        assert about(tmp_path)["finished"] is False
    assert answer(third) == whole
    assert sorted(first.asked + second.asked + third.asked) == list(range(40))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert about(tmp_path) | {"command": ""} == about(tmp_path, "whole") | {"command": ""}

    again = OneProcess()
    assert answer(again) == whole
    assert again.asked == []


def test_a_larger_number_of_rows_adds_to_the_file_and_a_smaller_one_leaves_it(answer: Any) -> None:
    few = answer(OneProcess(), num_rows=6)
    assert len(few) == 6
    more = OneProcess()
    assert answer(more, num_rows=10)[:6] == few
    assert len(more.asked) == 4
    assert answer(OneProcess(), num_rows=10) == answer(OneProcess(), "direct.jsonl", num_rows=10)
    none = OneProcess()
    assert len(answer(none, num_rows=3)) == 10
    assert none.asked == []


def test_several_sources_have_a_file_each_that_is_what_each_alone_would_have(
    tiny_config: Any, tiny_model: Path, tiny_data: Path, tmp_path: Path, answer: Any
) -> None:
    lines = tiny_data.read_text().splitlines(keepends=True)
    names = ["few", "many"]
    for name, rows in zip(names, (lines[:7], lines[7:]), strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    tokenizer = load_tokenizer(tiny_model)
    with contextlib.ExitStack() as stack:
        jobs: list[AnswerJob] = []
        for name in names:
            own = tiny_config(data={"source": str(tmp_path / f"{name}.jsonl")})
            file = CompletionFile(tmp_path / f"{name}-together.jsonl", settings={}, command="")
            prompts = Prompts(tokenizer, own, 512)
            ends = end_token_ids(tokenizer, tiny_model)
            jobs.append(AnswerJob(own, tokenizer, ends, prompts, stack.enter_context(file), 5))
        writing = GenerationProgress(Progress(Console(file=io.StringIO()), 0), 10, 0)
        generator = OneProcess()
        run_together(jobs, generator, writing)
        for job in jobs:
            job.file.finish(job.prompts.order)
    assert (len(generator.asked), writing.num_written) == (10, 10)
    for name in names:
        alone = answer(OneProcess(), f"{name}-alone.jsonl", 5, data={"source": str(tmp_path / f"{name}.jsonl")})
        together = (tmp_path / f"{name}-together.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in together] == alone


def test_an_empty_answer_is_left_out_counted_and_not_asked_for_again(answer: Any, tmp_path: Path) -> None:
    rows = answer(OneProcess(empty=11))
    assert sorted(row["row"] for row in rows) == [i for i in range(40) if i != 11]
    assert (about(tmp_path)["left_out"], about(tmp_path)["summary"]["num_left_out"]) == ([11], 1)
    again = OneProcess()
    assert answer(again) == rows
    assert again.asked == []


def test_the_summary_counts_what_the_file_holds(answer: Any, tmp_path: Path) -> None:
    rows = answer(OneProcess())
    summary = about(tmp_path)["summary"]
    assert summary["num_rows"] == 40
    assert summary["num_tokens"] == sum(row["num_tokens"] for row in rows)
    assert summary["num_cut"] == sum(row["finish_reason"] == "length" for row in rows) > 0
    assert summary["num_changed"] == sum(not row["same_tokens"] for row in rows) > 0


def test_other_settings_are_refused_with_what_differs(answer: Any) -> None:
    with pytest.raises(KilledError):
        answer(OneProcess(lives=3))
    with pytest.raises(RunError, match=r"begun with other settings \(rollout.temperature: 1.0 -> 0.5\)"):
        answer(OneProcess(), rollout={"temperature": 0.5})


def test_data_that_changed_meanwhile_is_refused(answer: Any, tiny_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_bytes(tiny_data.read_bytes())
    generator = OneProcess(lives=3)
    with pytest.raises(KilledError):
        answer(generator, data={"source": str(source)})
    lines = source.read_text().splitlines()
    lines[generator.asked[1]] = '{"prompt": "Something else", "completion": "x"}'
    source.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=rf"answers other prompts .* \(row {generator.asked[1]}\)"):
        answer(OneProcess(), data={"source": str(source)})


@pytest.mark.parametrize("theirs", ["a.jsonl", "a.json"])
def test_a_file_of_somebody_else_is_left_alone(answer: Any, tmp_path: Path, theirs: str) -> None:
    (tmp_path / theirs).write_text('{"text": "mine"}\n')
    with pytest.raises(RunError, match="is there already and not of `rayqd generate`"):
        answer(OneProcess())
    assert (tmp_path / theirs).read_text() == '{"text": "mine"}\n'


def test_completions_are_no_longer_than_the_data_may_be(answer: Any) -> None:
    rollout = {"min_new_tokens": 64, "max_new_tokens": 100}
    rows = answer(OneProcess(), data={"max_length": 90}, rollout=rollout)
    # <|im_start|>user\nSay xxxxx!<|im_end|>\n<|im_start|>assistant\n has 6 + 10 + 2 + 11 tokens
    assert {row["num_tokens"] for row in rows} == {90 - 29}


def test_resolve_model(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(model={"revision": "v2"})
    assert (resolve_model("teacher", config).name, resolve_model("teacher", config).revision) == (
        config.model.name,
        "v2",
    )
    larger = resolve_model("teacher", tiny_config(teacher={"name": "large"}, model={"revision": "v2"}))
    assert (larger.name, larger.revision) == ("large", None)
    assert resolve_model("Qwen/Qwen3-0.6B", config).label == "Qwen3-0.6B"
    with pytest.raises(ModelError, match="has no export that could answer: name the run with --name"):
        resolve_model("student", config)
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.toml").touch()
    for model in ("student", str(config.run_dir)):
        with pytest.raises(ModelError, match=f"has no export that could answer: rayqd export {config.run_dir}"):
            resolve_model(model, config)
    (config.run_dir / "export").mkdir()
    assert resolve_model("student", config).name == str(config.run_dir / "export")
    assert resolve_model("student", config).label == "student"
    assert resolve_model(str(config.run_dir), config).label == "tiny"


def test_mistakes_are_found_before_anything_starts(tiny_config: Any, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out .*a.txt: must end with .jsonl"):
        generate(tiny_config(), out=tmp_path / "a.txt")
    with pytest.raises(ModelError, match="does not exist"):
        generate(tiny_config(), model="./nowhere", out=tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"leaves no prompts: of its 40 rows 0 are broken, 40 leave no room"):
        generate(tiny_config(data={"min_room": 120}), out=tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []
