"""Numbers of a run's data, against counting by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayqd.config.sections import DataConfig
from rayqd.data import load_run_data
from rayqd.data.packed_examples import PackedExamples
from rayqd.data.summary import measure_lengths, summarize_data
from rayqd.errors import RunError
from rayqd.model.load import load_tokenizer
from rayqd.runs.data_file import read_data, write_data
from rayqd.types import Example


def of_lengths(*pairs: tuple[int, int]) -> list[Example]:
    return [
        Example(row=i, prompt_ids=np.zeros(p, dtype=np.int32), completion_ids=np.zeros(c, dtype=np.int32))
        for i, (p, c) in enumerate(pairs)
    ]


def test_lengths_are_those_of_prompt_and_completion_together() -> None:
    lengths = measure_lengths(of_lengths((1, 1), (2, 2), (4, 2), (10, 10)))  # 2, 4, 6, 20 tokens
    assert (lengths.mean, lengths.median, lengths.high, lengths.longest) == (8.0, 5.0, 20, 20)
    assert lengths.trained_share == 15 / 32
    assert sum(each.num_rows for each in lengths.bins) == 4
    assert [(each.first, each.last, each.num_rows) for each in lengths.bins if each.num_rows] == [
        (1, 2, 1), (3, 4, 1), (5, 6, 1), (19, 20, 1),
    ]  # fmt: skip


def test_lengths_that_are_all_alike_are_one_bin() -> None:
    (only,) = measure_lengths(of_lengths((300, 4), (200, 104))).bins
    assert only.first <= 304 <= only.last
    assert only.num_rows == 2


@pytest.fixture
def summary(tiny_config: Any, tiny_model: Path, tiny_data: Path) -> Any:
    def make(rows: str | None = None, num_first: int = 3, **sections: Any) -> Any:
        data: dict[str, Any] = {}
        if rows is not None:
            file = tiny_data.parent / "summary.jsonl"
            file.write_text(rows)
            data = {"data": {"source": str(file), "on_bad_row": "skip"}}
        config = tiny_config(**data, **sections)
        tokenizer = load_tokenizer(tiny_model)
        return summarize_data(
            tokenizer, tiny_model, config, *load_run_data(tokenizer, config, 512), num_first=num_first
        )

    return make


def test_every_row_of_the_source_is_in_one_count(summary: Any) -> None:
    rows = [{"prompt": f"Row {i}", "completion": "x" * (200 if i < 4 else 5)} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "no row\n" * 5
    found = summary(text, learner={"steps": 40, "batch_size": 3})
    training = found.training
    assert training.num_rows == 25
    assert (training.num_used, training.num_not_needed) == (12, 4)  # 16 fit; 4 of them are held out
    reasons = {each.reason: each for each in training.left_out}
    assert {reason: each.num_rows for reason, each in reasons.items()} == {"too long": 4, "broken": 5}
    assert [len(each.first) for each in reasons.values()] == [3, 3]
    assert all("summary.jsonl:" in line for each in reasons.values() for line in each.first)
    assert found.steps_per_epoch == 12 / 3


def test_an_epoch_is_estimated_from_the_rows_that_were_looked_at(summary: Any) -> None:
    found = summary(learner={"steps": 2, "batch_size": 4})  # 8 of 40 rows, 4 more are held out, all of them good
    assert (found.training.num_used, found.training.num_not_needed) == (8, 32)
    assert found.steps_per_epoch == (40 - 4) / 4


def test_first_rows_are_those_of_the_first_steps_by_who_writes_them(summary: Any) -> None:
    data = summary(distill={"lmbda": 0.0})
    assert [row.writer for row in data.first] == ["", "", ""]
    assert len({row.row for row in data.first}) == 3
    assert data.first[0].end == "<|im_end|>"
    assert "<|im_end|>" in data.ends
    assert {row.writer for row in summary(distill={"lmbda": 1.0}).first} == {"the student"}
    assert {row.writer for row in summary(distill={"lmbda": 0.0, "seq_kd": True}).first} == {"the teacher"}
    assert len(summary(num_first=99).first) <= 16


def test_the_file_gives_back_what_was_written(summary: Any, tmp_path: Path) -> None:
    data = summary()
    assert read_data(tmp_path) is None
    write_data(tmp_path, data)
    assert read_data(tmp_path) == data
    (tmp_path / "data.json").write_text("{")
    assert read_data(tmp_path) is None


@pytest.mark.parametrize("changed", [0, 19], ids=["the first row", "the last row"])
def test_a_run_that_has_begun_does_not_go_on_with_other_rows(changed: int, summary: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Row {i}", "completion": "x"} for i in range(20)]
    others = [*rows]
    others[changed] = {"prompt": "Row 0", "completion": "y"}  # as many as before, and as long
    now, other = (summary("".join(json.dumps(row) + "\n" for row in each)) for each in (rows, others))
    write_data(tmp_path, other)
    write_data(tmp_path, now)  # nothing has been made of them
    (tmp_path / "audit.jsonl").touch()
    write_data(tmp_path, now)
    with pytest.raises(RunError, match=r"has begun with other rows, .* the data is not what it was; put back"):
        write_data(tmp_path, other)
    assert read_data(tmp_path) == now
    content = json.loads((tmp_path / "data.json").read_text())
    del content["rows"], content["teachers"]  # of an earlier version
    (tmp_path / "data.json").write_text(json.dumps(content))
    write_data(tmp_path, other)


def test_no_example_is_looked_at_to_count_the_rows_of_a_single_teacher(
    summary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions."""
    looked_at: list[int] = []
    look = PackedExamples.example_at
    monkeypatch.setattr(PackedExamples, "example_at", lambda own, i: looked_at.append(i) or look(own, i))
    monkeypatch.setattr(PackedExamples, "__iter__", lambda own: iter([own[i] for i in range(len(own))]))
    rows = [{"prompt": f"Row {i}", "completion": "x"} for i in range(50)]
    summary("".join(json.dumps(row) + "\n" for row in rows), num_first=2, eval={"num_rows": 2})
    assert len(looked_at) < 20


def test_each_of_several_sources_has_its_rows_share_and_epochs(
    tiny_config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    tables: list[dict[str, Any]] = []
    for name, num_rows, weight in (("a", 30, 3), ("b", 10, 1)):
        rows = [{"prompt": f"{name} {i}", "completion": name * (200 if i < 2 else 5)} for i in range(num_rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tables.append({"source": str(tmp_path / f"{name}.jsonl"), "weight": weight})
    tables[1]["limit"] = 5
    config = tiny_config(learner={"steps": 40, "batch_size": 3})
    config = config.model_copy(update={"data": DataConfig(sources=tables, max_length=128, min_room=8)})
    tokenizer = load_tokenizer(tiny_model)
    training, heldout = load_run_data(tokenizer, config, 512)
    data = summarize_data(tokenizer, tiny_model, config, training, heldout, num_first=4)
    # Of 120 sequences 90 and 30; of 4 held-out rows 3 and 1; of a.jsonl 28 fit, of b.jsonl 5 are asked for.
    first, second = data.sources
    assert (first.label, first.num_rows, first.num_used, first.share, first.num_drawn) == ("a", 30, 25, 0.75, 90)
    assert (second.label, second.num_rows, second.num_used, second.share, second.num_drawn) == ("b", 10, 5, 0.25, 30)
    assert (first.num_epochs, second.num_epochs) == (pytest.approx(90 / 25), pytest.approx(30 / 5))
    assert data.steps_per_epoch == pytest.approx(25 / (0.75 * 3))  # then every row has been trained on
    assert data.epochs == "3.60 of a and 6.00 of b"
    assert (data.training.num_rows, data.training.num_used) == (40, 30)
    assert [each.num_rows for each in data.training.left_out] == [sum(each.num_left_out for each in data.sources)]
    assert [row.source for row in data.first] == ["a", "a", "b", "a"]  # as three and one are due
    write_data(tmp_path, data)
    assert read_data(tmp_path) == data


def test_a_single_source_has_no_name_of_its_own(summary: Any) -> None:
    data = summary()
    assert data.sources == ()
    assert {row.source for row in data.first} == {""}
