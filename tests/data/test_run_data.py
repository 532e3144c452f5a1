"""What a run reads of several sources."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rayqd.config import Config
from rayqd.data import ExampleSet, calibration_sequences, load_heldout, load_run_data
from rayqd.data.run_data import examples_by_weight
from rayqd.errors import ConfigError, DataError
from rayqd.types import Example


def write(path: Path, num_rows: int, letter: str) -> str:
    """Rows that say the letter and their number."""
    rows = [{"prompt": f"{letter}{i}", "completion": letter * 3} for i in range(num_rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make_config(tmp_path: Path) -> Any:
    """A run of 20 sequences of which a.jsonl with 50 rows gives three quarters and b.jsonl with 30 the rest."""
    sources = [
        {"source": write(tmp_path / "a.jsonl", 50, "a"), "weight": 3},
        {"source": write(tmp_path / "b.jsonl", 30, "b"), "weight": 1},
    ]

    def make(*changes: dict[str, Any], **sections: Any) -> Config:
        changed = [{**source, **change} for source, change in zip(sources, changes or ({}, {}), strict=True)]
        base: dict[str, Any] = {
            "data": {"sources": changed, "max_length": 64, "min_room": 10},
            "eval": {"num_rows": 8},
            "learner": {"steps": 5, "batch_size": 4},
        }
        return Config(**{key: value | sections.get(key, {}) for key, value in base.items()})

    return make


def rows_of(data: ExampleSet) -> list[list[int]]:
    return [[example.row for example in part.examples] for part in data.parts]


def test_each_source_gives_its_share_of_what_is_trained_on_and_held_out(
    make_config: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    training, heldout = load_run_data(tokenizer, make_config(), 1000)
    # Of 20 sequences 15 and 5, of 8 held-out rows 6 and 2.
    assert training.sizes == (15, 5)
    assert heldout.sizes == (6, 2)
    for trained, held_out in zip(rows_of(training), rows_of(heldout), strict=True):
        assert not set(trained) & set(held_out)
    assert [len(training.examples), training.num_rows, len(training.keys)] == [20, 80, 20]
    assert [e.row for e in training.examples] == [training.examples[i].row for i in range(20)]
    assert [e.row for e in training.examples[15:]] == [e.row for e in training.parts[1].examples]
    assert training.examples[-1].prompt_ids.tolist() == training.parts[1].examples[-1].prompt_ids.tolist()
    with pytest.raises(IndexError):
        training.examples[20]


def test_a_source_is_read_as_it_is_alone(make_config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    config = make_config()
    training, heldout = load_run_data(tokenizer, config, 1000)
    sections = {"eval": {"num_rows": 6}, "learner": {"steps": 15, "batch_size": 1}}
    alone = Config(data={"source": config.data.sources[0].source, "max_length": 64, "min_room": 10}, **sections)
    alone_training, alone_heldout = load_run_data(tokenizer, alone, 1000)
    assert rows_of(alone_training)[0] == rows_of(training)[0]
    assert rows_of(alone_heldout)[0] == rows_of(heldout)[0]


def test_a_limit_is_the_most_that_is_trained_on(make_config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    training, heldout = load_run_data(tokenizer, make_config({"limit": 4}, {}), 1000)
    assert training.sizes == (4, 5)
    assert heldout.sizes == (6, 2)


def test_held_out_rows_of_one_source_are_not_trained_on_in_another(
    make_config: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text((tmp_path / "a.jsonl").read_text())
    config = make_config({}, {"source": str(copy), "weight": 30}, learner={"steps": 50})
    training, heldout = load_run_data(tokenizer, config, 1000)
    seen = {example.prompt_ids.tobytes() for example in heldout.examples}
    assert not seen & {example.prompt_ids.tobytes() for example in training.examples}
    twice = sum(map(len, rows_of(training))) - len(set(training.keys.tolist()))
    assert twice > 0
    assert training.num_duplicates == twice
    assert f"{twice} rows of one source also stand in another" in training.remarks


def test_columns_and_splits_are_each_source_s_own(
    make_config: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"q": f"c{i}", "a": "ccc"}) + "\n" for i in range(30)))
    columns = {"prompt": "q", "completion": "a"}
    config = make_config({"split": "train[:20]"}, {"source": str(tmp_path / "c.jsonl"), "columns": columns})
    training, _ = load_run_data(tokenizer, config, 1000)
    assert training.sizes == (14, 5)  # 20 rows of which 6 are held out
    assert training.parts[0].num_rows == 20


def _text_of(example: Example) -> bytes:
    return example.prompt_ids.tobytes() + example.completion_ids.tobytes()


def test_the_first_rows_for_calibration_are_of_all_sources_by_weight(
    make_config: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = make_config()
    training, _ = load_run_data(tokenizer, config, 1000)
    mixed = list(examples_by_weight(training, config))
    of_second = {_text_of(example) for example in training.parts[1].examples}
    # Three are due at 2/3, 2 and 10/3, one at 2, and so on; of two that are due together the first source's comes.
    assert "".join("b" if _text_of(example) in of_second else "a" for example in mixed) == "aaba" * 5
    assert len({_text_of(example) for example in mixed}) == 20
    (first,) = calibration_sequences(iter(mixed), 1)
    assert np.array_equal(first, np.concatenate([mixed[0].prompt_ids, mixed[0].completion_ids]))


def test_who_waits_is_told_of_all_sources_together(
    make_config: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", 300, "a")
    write(tmp_path / "b.jsonl", 300, "b")
    told: list[tuple[int, int]] = []
    config = make_config(learner={"steps": 100})
    load_run_data(tokenizer, config, 1000, lambda done, total: told.append((done, total)))
    # a.jsonl has all of its 300 rows looked at, 6 of them held out; b.jsonl 2 and 100.
    assert told == [(64, 400), (128, 400), (192, 400), (256, 400), (294 + 64, 294 + 102)]


def test_a_source_that_gives_nothing_is_named(make_config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"b\.jsonl leaves nothing to train on: .* the 8 others are held out"):
        load_run_data(tokenizer, make_config({}, {"split": "train[:8]"}, eval={"num_rows": 32}), 1000)


def test_a_weight_too_small_to_be_drawn_is_said(make_config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    training, _ = load_run_data(tokenizer, make_config({"weight": 1000}, {}), 1000)
    (remark,) = [remark for remark in training.remarks if "gives none" in remark]
    assert remark.endswith("b.jsonl gives none of the run's 20 sequences: its share is 0.001 (weight=1)")


def test_the_same_source_twice_is_refused(make_config: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    config = make_config({}, {"source": str(tmp_path / "x" / ".." / "a.jsonl")})
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigError, match=r"data\.sources\[1\] is data\.sources\[0\] once more .* weights \(4\)"):
        load_heldout(tokenizer, config, 1000)
    halves = make_config({"split": "train[:25]"}, {"source": str(tmp_path / "a.jsonl"), "split": "train[25:]"})
    assert load_run_data(tokenizer, halves, 1000)[0].sizes == (15, 5)


def test_evaluating_on_one_of_the_sources_is_refused(
    make_config: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"b\.jsonl\" is what data\.sources trains on"):
        load_heldout(tokenizer, make_config(eval={"source": str(tmp_path / "b.jsonl")}), 1000)
    heldout = write(tmp_path / "h.jsonl", 9, "h")
    training, held_out = load_run_data(tokenizer, make_config(eval={"source": heldout}), 1000)
    assert (training.sizes, rows_of(held_out)) == ((15, 5), [[0, 1, 2, 3, 4, 5, 6, 7]])


@pytest.mark.slow  # imports torch and transformers
def test_what_is_said_of_both_is_said_once(make_config: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    from rayqd.driver.preflight import describe_data

    training, heldout = load_run_data(tokenizer, make_config(), 1000)
    both = [replace(data, remarks=(*data.remarks, "the file is odd")) for data in (training, heldout)]
    first, *others = describe_data(*both)
    assert others.count("the file is odd") == 1
    parts = "; held out: ".join(rf"{a} rows of \S+a\.jsonl \+ {b} rows of \S+b\.jsonl" for a, b in ((15, 5), (6, 2)))
    assert re.fullmatch(f"data: {parts}", first)


def test_answers_to_each_source_go_to_a_file_of_its_own(make_config: Any) -> None:
    from rayqd.commands.generate import ResolvedModel, name_files

    resolved = ResolvedModel(label="teacher", name="x")
    assert name_files(make_config(), resolved, None) == [Path("a-teacher.jsonl"), Path("b-teacher.jsonl")]
    with pytest.raises(ConfigError, match=r"--out c.jsonl: data.sources names 2, each with a file of its own"):
        name_files(make_config(), resolved, Path("c.jsonl"))


def test_held_out_rows_may_have_columns_of_their_own(
    make_config: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    asked = [{"problem": f"p{i}", "solution": "s"} for i in range(4)]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    of_eval = {"source": str(tmp_path / "heldout.jsonl"), "num_rows": 4}
    with pytest.raises(DataError, match=r"got the keys problem, solution: say in eval.columns which of them are"):
        load_heldout(tokenizer, make_config(eval=of_eval), 1000)
    with pytest.raises(DataError, match=r'eval.columns: prompt = "problm" is no .* did you mean problem\?'):
        load_heldout(tokenizer, make_config(eval={**of_eval, "columns": {"prompt": "problm"}}), 1000)
    columns = {"prompt": "problem", "completion": "solution"}
    heldout = load_heldout(tokenizer, make_config(eval={**of_eval, "columns": columns}), 1000)
    named = [{"prompt": row["problem"], "completion": row["solution"]} for row in asked]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    same = load_heldout(tokenizer, make_config(eval={**of_eval, "source": str(tmp_path / "named.jsonl")}), 1000)
    assert [each.prompt_ids.tolist() for each in heldout.examples] == [e.prompt_ids.tolist() for e in same.examples]
