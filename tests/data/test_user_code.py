"""A reader and a filter that are no part of rayqd: a module in a temporary directory, named by its import path."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayqd.cli import main
from rayqd.config import Config, differences, load_config, to_toml
from rayqd.config.sections import DataConfig
from rayqd.data import load_run_data, read_rows
from rayqd.data.left_out import Reason
from rayqd.data.prompts import Prompts
from rayqd.data.user_code import check_user_code
from rayqd.driver.preflight import check, load_data, summary
from rayqd.errors import ConfigError, DataError

MODULE = '''
"""Tab-separated questions and answers, with a mark."""

import numpy as np


def read(source, split):
    with open(source) as lines:
        for line in lines:
            question, answer, mark = line.rstrip("\\n").split("\\t")
            yield {"prompt": f"{split}: {question}", "completion": answer, "mark": int(mark)}


def keep(row):
    return row["mark"] > 2


def as_numpy(row):
    return np.bool_(row["mark"] > 2)


def rows_of_lists(source, split):
    return [{"prompt": "a", "completion": "b"}, ["a", "b"]]


def nothing(source, split):
    read(source, split)


def fails(source, split):
    yield {"prompt": "a", "completion": "b"}
    raise OSError("the archive\\nis encrypted")


def too_few(source):
    return []


def broken_row(source, split):
    return [{"prompt": "a", "completion": "b"}, {"question": "a"}]


def mark_or_nothing(row):
    return row["mark"] if row["mark"] > 2 else None


def other_key(row):
    return row["score"] > 2


def needs_two(row, split):
    return True


CALLS = []


def counting(row):
    CALLS.append(row)
    return True


not_a_function = 3
'''
LINES = ["a\tA\t1", "b\tB\t2", "c\tC\t3", "d\tD\t4", "e\tE\t5"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file that only the module `outside_data`, which lies beside it, can read."""
    (tmp_path / "outside_data.py").write_text(MODULE)
    (tmp_path / "rows.tsv").write_text("".join(line + "\n" for line in LINES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield "rows.tsv"
    sys.modules.pop("outside_data", None)


def data_of(source: str, **settings: Any) -> DataConfig:
    return DataConfig(source=source, reader="outside_data:read", max_length=64, min_room=1, **settings)


def test_a_reader_gets_source_and_split_and_its_rows_are_read_as_those_of_a_file_are(
    table: str, tmp_path: Path, tokenizer: Any
) -> None:
    rows = read_rows(data_of(table, split="dev"))
    assert len(rows) == 5
    assert rows.row(1) == [{"role": "user", "content": "dev: b"}, {"role": "assistant", "content": "B"}]

    twin = tmp_path / "twin.jsonl"
    pairs = [line.split("\t") for line in LINES]
    twin.write_text("".join(json.dumps({"prompt": f"train: {q}", "response": a}) + "\n" for q, a, _ in pairs))
    settings = {"max_length": 64, "min_room": 1}
    sections: Any = {"eval": {"num_rows": 2}, "learner": {"steps": 3, "batch_size": 1}}
    given = Config.model_validate({"data": {"source": table, "reader": "outside_data:read", **settings}} | sections)
    file = Config.model_validate({"data": {"source": str(twin), **settings}} | sections)
    for ours, theirs in zip(load_run_data(tokenizer, given, 512), load_run_data(tokenizer, file, 512), strict=True):
        assert [example.row for example in ours.examples] == [example.row for example in theirs.examples]
        for a, b in zip(ours.examples, theirs.examples, strict=True):
            assert np.array_equal(a.prompt_ids, b.prompt_ids)
            assert np.array_equal(a.completion_ids, b.completion_ids)


@pytest.mark.parametrize("name", ["keep", "as_numpy"])
def test_a_filter_sees_the_row_as_it_was_read_and_leaves_out_what_is_counted(
    table: str, tokenizer: Any, name: str
) -> None:
    rows = read_rows(data_of(table, filter=f"outside_data:{name}"))
    kept = [(rows.row(i) or [{}])[-1].get("content") for i in range(5)]
    assert kept == [None, None, "C", "D", "E"]
    assert (rows.num_left_out(Reason.FILTERED), rows.num_left_out(Reason.BROKEN)) == (2, 0)
    assert [rows.row(i) is None for i in range(5)] == [True, True, False, False, False]
    assert rows.num_left_out(Reason.FILTERED) == 2  # looking twice counts once


def test_a_filter_works_on_a_file_too_and_spares_a_row_from_being_broken(table: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"prompt": "a", "completion": "b", "mark": 3}
    file.write_text("".join(json.dumps(row) + "\n" for row in (good, {"mark": 1}, good)))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: neither messages nor prompt"):
        read_rows(DataConfig(source=str(file)))
    rows = read_rows(DataConfig(source=str(file), filter="outside_data:keep"))
    assert (rows.num_left_out(Reason.FILTERED), rows.row(1)) == (1, None)


def test_a_row_is_shown_to_the_filter_once(table: str, tokenizer: Any) -> None:
    rows = read_rows(data_of(table, filter="outside_data:counting"))
    for i in range(5):
        rows.row(i)
    assert [row["mark"] for row in sys.modules["outside_data"].CALLS] == [1, 2, 3, 4, 5]


def test_the_count_is_said_where_those_left_out_for_other_reasons_are(
    table: str, tiny_config: Any, tiny_model: Path
) -> None:
    data = {"source": table, "reader": "outside_data:read", "filter": "outside_data:keep", "min_room": 1}
    config: Config = tiny_config(data=data, eval={"num_rows": 1}, learner={"steps": 4, "batch_size": 2})
    checked = check(config)
    training, heldout = load_data(checked, config)
    assert (len(training.examples), len(heldout.examples)) == (2, 1)
    assert summary(training) == "2 rows of rows.tsv (train), 2 left out by data.filter"
    prompts = Prompts(checked.tokenizer, config, 512)
    assert (len(list(prompts.remaining(set(), None))), prompts.num_filtered) == (3, 2)


def test_a_filter_that_leaves_nothing_is_named(table: str, tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "rows.tsv").write_text("a\tA\t1\n")
    config = Config(data=data_of(table, filter="outside_data:keep"))
    with pytest.raises(DataError, match=r"of its 1 rows 0 are broken, .*, 1 are left out by data.filter"):
        load_run_data(tokenizer, config, 2048)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"reader": "outside_data:raed"},
            "data.reader=outside_data:raed: outside_data has no raed; did you mean read?",
        ),
        ({"reader": "nobodys_data:read"}, "data.reader=nobodys_data:read: there is no module nobodys_data"),
        ({"reader": "rows.tsv"}, "data.reader=rows.tsv is no import path"),
        ({"reader": "outside_data:not_a_function"}, "of type int, which cannot be called"),
        ({"reader": "outside_data:too_few"}, "is called as too_few(source, split), but too many positional arguments"),
        ({"filter": "outside_data:needs_two"}, "is called as needs_two(row), but missing a required argument: 'split'"),
        ({"filter": "outside_data"}, "data.filter=outside_data is no import path"),
    ],
)
def test_what_cannot_be_called_is_said_before_anything_is_loaded(
    table: str, tiny_config: Any, settings: dict[str, str], said: str
) -> None:
    for attempt in (
        lambda: check_user_code(DataConfig.model_validate(settings)),
        lambda: check(tiny_config(data=settings, model={"name": "/no/such/model"})),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (
            {"reader": "outside_data:rows_of_lists"},
            ConfigError,
            "data.reader=outside_data:rows_of_lists: row 1 is of type list: it must be a dict",
        ),
        ({"reader": "outside_data:nothing"}, ConfigError, "returns NoneType: it must yield rows, or return a list"),
        ({"reader": "outside_data:fails"}, DataError, "fails after 1 rows: OSError: the archive is encrypted"),
        (
            {"reader": "outside_data:broken_row"},
            DataError,
            "rows.tsv (train) by outside_data:broken_row, row 1: neither messages nor prompt",
        ),
        (
            {"filter": "outside_data:mark_or_nothing", "on_bad_row": "skip"},
            ConfigError,
            "data.filter=outside_data:mark_or_nothing: returns NoneType for rows.tsv (train) by outside_data:read, "
            "row 0: it must be True or False",
        ),
        (
            {"filter": "outside_data:other_key", "on_bad_row": "skip"},
            ConfigError,
            "data.filter=outside_data:other_key fails at rows.tsv (train) by outside_data:read, row 0: KeyError: "
            "'score'",
        ),
    ],
)
def test_what_the_users_code_does_wrong_is_one_line_with_the_row(
    table: str, settings: dict[str, str], error: type[Exception], said: str
) -> None:
    data = DataConfig.model_validate({"source": table, "reader": "outside_data:read"} | settings)
    with pytest.raises(error) as caught:
        read_rows(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["distill", "quantize", "generate", "eval"])
def test_every_command_that_reads_data_refuses_it_in_one_line(
    table: str, tiny_model: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = [
        "--model.name",
        str(tiny_model),
        "--data.source",
        table,
        "--data.max_length",
        "256",
        "--quant.group_size",
        "32",
    ]
    operands = [str(tiny_model)] if command == "eval" else []
    assert main([command, *operands, *words, "--data.reader", "outside_data:rows_of_lists"]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("rayqd: error:")]
    assert line == "rayqd: error: data.reader=outside_data:rows_of_lists: row 1 is of type list: it must be a dict"
    assert "Traceback" not in printed.err


def test_a_broken_row_of_a_reader_is_skipped_where_that_is_wanted(table: str) -> None:
    rows = read_rows(DataConfig(source=table, reader="outside_data:broken_row", on_bad_row="skip"))
    assert (len(rows), rows.num_left_out(Reason.BROKEN), rows.row(1)) == (2, 1, None)


def test_both_are_in_the_runs_config_and_a_run_from_before_they_existed_resumes(table: str, tmp_path: Path) -> None:
    before = Config()
    old = tmp_path / "config.toml"
    lines = to_toml(before).splitlines()
    assert not [line for line in lines if line.startswith(("reader", "filter"))]
    old.write_text("\n".join(lines))
    assert differences(load_config([f"@{old}"]), before) == []
    given = Config(data=data_of(table, filter="outside_data:keep"))
    assert 'reader = "outside_data:read"' in to_toml(given).splitlines()
    assert differences(before, Config(data=DataConfig(reader="outside_data:read"))) == [
        'data.reader: none -> "outside_data:read"'
    ]
