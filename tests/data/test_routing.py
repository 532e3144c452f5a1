"""Which teacher a row gets: by its own column's value, or one line that says why it has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.data import ExampleSet, load_run_data
from rayqd.data.routing import count_by_teacher
from rayqd.data.summary import summarize_data
from rayqd.errors import ConfigError, DataError, RunError
from rayqd.model.load import load_tokenizer
from rayqd.runs.data_file import write_data
from rayqd.types import Rollout

SUBJECTS = ["math", "code", "poetry", "math", "law"]
ROUTE = {"math": "org/m", "code": "org/c", "*": "org/base"}
NUMBERS = {"math": 2, "code": 1}  # of the teachers, sorted by name; all others have number 0


@pytest.fixture
def make_config(tiny_config: Any, tmp_path: Path) -> Any:
    """A function that writes rows of the given subjects and returns a Config that is routed by them."""

    def make(subjects: list[Any], route: dict[str, str] = ROUTE, **sections: Any) -> Config:
        rows = [{"prompt": f"Say {i}!", "completion": f"{i}.", "subject": s} for i, s in enumerate(subjects)]
        file = tmp_path / "subjects.jsonl"
        file.write_text("".join(json.dumps({k: v for k, v in r.items() if v != "none"}) + "\n" for r in rows))
        sections["data"] = {"source": str(file), "max_length": 128, "min_room": 8, **sections.get("data", {})}
        return tiny_config(**{"teacher": {"column": "subject", "route": route}, **sections})

    return make


def load(config: Config, tiny_model: Path) -> tuple[ExampleSet, ExampleSet]:
    return load_run_data(load_tokenizer(tiny_model), config, 512)


def test_every_row_has_the_teacher_of_its_own_value_held_out_or_not(make_config: Any, tiny_model: Path) -> None:
    config = make_config(subjects := SUBJECTS * 4)
    training, heldout = load(config, tiny_model)
    assert [each.name for each in config.teachers] == ["org/base", "org/c", "org/m"]
    assert len(heldout.examples) == 4
    for example in [*training.examples, *heldout.examples]:
        assert example.teacher == NUMBERS.get(subjects[example.row], 0)
        assert Rollout.from_data(example, step=0, index=0).summary.teacher == example.teacher
    both = [count_by_teacher(rows, 3) for rows in (training, heldout)]
    assert [sum(of_each) for of_each in zip(*both, strict=True)] == [8, 4, 8]


def test_sources_that_are_joined_and_rows_for_evaluation_are_routed_each_by_its_own_rows(
    make_config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    config = make_config(["math"] * 8)
    code = tmp_path / "code.jsonl"
    code.write_text(
        "".join(json.dumps({"prompt": f"p{i}", "completion": "c", "subject": "code"}) + "\n" for i in range(8))
    )
    sources = [{"source": config.data.source, "name": "a"}, {"source": str(code), "name": "b"}]
    config = make_config(["math"] * 8, data={"source": Config().data.source, "sources": sources})
    training, heldout = load(config, tiny_model)
    assert [{each.teacher for each in part.examples} for part in training.parts] == [{2}, {1}]
    assert {each.teacher for each in training.examples[-len(training.parts[1].examples) :]} == {1}
    assert sorted(each.teacher for each in heldout.examples) == [1, 1, 2, 2]

    config = make_config(["math"] * 8, eval={"source": str(code), "num_rows": 3})
    assert [each.teacher for each in load(config, tiny_model)[1].examples] == [1, 1, 1]


@pytest.mark.parametrize(
    ("subjects", "says"),
    [
        (
            ["math", "Math"],
            'subjects.jsonl:2: subject = "Math" has no teacher: did you mean math? teacher.route has math',
        ),
        (["math", None], "subjects.jsonl:2: has no subject, which teacher.column names: it has prompt, completion"),
        (["math", "none"], "subjects.jsonl:2: has no subject, which teacher.column names"),
        (["math", ["math"]], "subjects.jsonl:2: subject, which teacher.column names, is of type list"),
    ],
    ids=["a value that is not named", "null", "no such column", "a list"],
)
def test_a_row_without_a_teacher_ends_the_run_with_its_place(
    subjects: list[Any], says: str, make_config: Any, tiny_model: Path
) -> None:
    config = make_config(subjects, {"math": "org/m"}, eval={"num_rows": 1}, data={"on_bad_row": "skip"})
    with pytest.raises(DataError) as raised:
        load(config, tiny_model)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_misspelt_column_is_named_though_there_is_a_teacher_of_all_others(make_config: Any, tiny_model: Path) -> None:
    config = make_config(["math"] * 8, teacher={"column": "subjet", "route": {"*": "org/m"}})
    with pytest.raises(DataError, match=r"has no subjet, which teacher\.column names: did you mean subject"):
        load(config, tiny_model)


def test_a_value_that_no_row_has_is_told(make_config: Any, tiny_model: Path) -> None:
    training, _ = load(make_config(["Math"] * 8, {"math": "org/m", "*": "org/base"}), tiny_model)
    remark = 'no row to train on has subject = "math", which teacher.route names; did you mean Math?'
    assert remark in training.remarks


def test_a_long_text_of_several_lines_is_shown_by_its_beginning_on_one(make_config: Any, tiny_model: Path) -> None:
    """The column was the wrong one; with a teacher of all others its texts are not all kept."""
    text = "Once upon\na time. " * 500
    route = {f"value-{i}": "org/m" for i in range(20)}
    with pytest.raises(DataError) as raised:
        load(make_config([text] * 2, route, eval={"num_rows": 1}), tiny_model)
    said = str(raised.value)
    assert "\n" not in said
    assert len(said) < 500 + len(said.partition(": ")[0])
    assert r'subject = "Once upon\na time. Once' in said
    assert "(9,000 characters) has no teacher" in said
    assert "value-7 and 12 more;" in said


def test_remarks_look_for_a_misspelt_value_among_the_first_values_alone(
    make_config: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("rayqd.data.routing.nearest", lambda value, there, **_: seen.append(len(there)))
    monkeypatch.setattr("rayqd.data.routing._MOST_OTHERS", 5)
    training, _ = load(make_config([f"a-{i}" for i in range(20)], {"math": "org/m", "*": "org/base"}), tiny_model)
    assert seen == [5]
    assert 'no row to train on has subject = "math", which teacher.route names' in training.remarks


def test_no_more_teachers_than_a_byte_numbers() -> None:
    def named(number: int) -> str:
        return ",".join(f"{i}=org/m{i}" for i in range(number))

    assert len(load_config(["--teacher.column", "s", "--teacher.route", named(256)]).teachers) == 256
    with pytest.raises(ConfigError, match="names 257 models, and a run has at most 256 teachers"):
        load_config(["--teacher.column", "s", "--teacher.route", named(257)])


@pytest.mark.parametrize("part", [0, 1], ids=["of training rows", "of rows that are held out"])
def test_a_run_that_has_begun_does_not_go_on_with_rows_of_other_teachers(
    part: int, make_config: Any, tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model)

    def summary(subjects: list[str]) -> Any:
        config = make_config(subjects)
        return summarize_data(tokenizer, tiny_model, config, *load(config, tiny_model))

    subjects = ["math", "code"] * 10
    rows = [example.row for example in load(make_config(subjects), tiny_model)[part].examples]
    one, other = (next(row for row in rows if subjects[row] == subject) for subject in ("math", "code"))
    swapped = [*subjects]
    swapped[one], swapped[other] = swapped[other], swapped[one]  # as many rows of each teacher as before

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_data(run_dir, summary(swapped))
    write_data(run_dir, before := summary(subjects))  # nothing was made of them yet
    (run_dir / "start").mkdir()
    write_data(run_dir, before)
    with pytest.raises(
        RunError, match=r"run has begun with other rows, or other teachers for them: the data is not what it"
    ):
        write_data(run_dir, summary(swapped))
    assert summary(swapped).teachers == before.teachers


def test_numbers_and_switches_are_values_as_json_writes_them(make_config: Any, tiny_model: Path) -> None:
    config = make_config([3, True] * 4, {"3": "org/b", "true": "org/a"})
    training, heldout = load(config, tiny_model)
    for example in [*training.examples, *heldout.examples]:
        assert example.teacher == 1 - example.row % 2


def test_the_report_counts_the_rows_of_each_teacher(make_config: Any, tiny_model: Path) -> None:
    config = make_config(SUBJECTS * 4)
    training, heldout = load(config, tiny_model)
    found = summarize_data(load_tokenizer(tiny_model), tiny_model, config, training, heldout).teachers
    assert [(each.name, each.values) for each in found] == [
        ("org/base", ("*",)),
        ("org/c", ("code",)),
        ("org/m", ("math",)),
    ]
    assert [each.num_training + each.num_heldout for each in found] == [8, 4, 8]
    assert sum(each.num_heldout for each in found) == 4
