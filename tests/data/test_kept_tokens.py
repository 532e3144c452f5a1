"""A source's tokens are read from disk the next time, and only where nothing that they follow from has changed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rayqd.config.sections import DataConfig
from rayqd.data import ExampleSet, kept_tokens, load_examples, select
from rayqd.data.packed_writer import PackedWriter

Load = Callable[..., ExampleSet]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(select, "MIN_ROWS", 1)
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows: list[Any] = [{"prompt": f"{i}?", "completion": f"{i}"} for i in range(20)]
    rows += [{"prompt": "0?", "completion": "0"}, {"prompt": "a"}, {"prompt": "b" * 60, "completion": "c"}]
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    rows += [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def load(tokenizer: PreTrainedTokenizerFast, source: Path, cache: Path) -> Load:
    def load(tokenizer: PreTrainedTokenizerFast = tokenizer, **changes: Any) -> ExampleSet:
        arguments = {"seed": 0, "num_needed": 100, "context_length": 100}
        settings = {key: changes.pop(key) for key in [*changes] if key not in {*arguments, "exclude", "heldout"}}
        data = {"source": str(source), "max_length": 80, "min_room": 10, "on_bad_row": "skip", "train_on": "all"}
        return load_examples(tokenizer, DataConfig(**data | settings), **arguments | changes)

    return load


def facts(rows: ExampleSet) -> list[Any]:
    """Return all that there is to know of the rows."""
    examples = [
        (e.row, e.prompt_ids.tolist(), e.completion_ids.tolist(), None if e.trained is None else e.trained.tolist())
        for e in rows.examples
    ]
    return [examples, rows.keys.tolist(), rows.source, rows.num_rows, rows.left_out, rows.remarks, rows.shapes]


@pytest.fixture
def never_again(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail(*arguments: Any) -> None:
            raise AssertionError("rows are tokenized once more")

        monkeypatch.setattr(select, "tokenize_rows", fail)

    return forbid


def test_the_second_time_nothing_is_tokenized_and_all_is_the_same(
    load: Load, never_again: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = facts(load())
    with monkeypatch.context() as patch:
        patch.setattr(select, "MIN_ROWS", 1000)
        assert facts(load()) == kept  # made in memory
    assert [str(part.reason) for part in kept[4]] == ["too long", "broken"]
    assert any(trained is not None for *_, trained in kept[0])
    never_again()
    assert facts(load()) == kept
    assert load().examples.ids.dtype == np.uint16  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"num_needed": 21},
        {"exclude": 1},
        {"heldout": {7}},
        {"max_length": 79},
        {"min_room": 9},
        {"train_on": "last"},
        {"columns": {"prompt": "prompt", "completion": "completion"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"split": "train[:50%]"},
    ],
    ids=str,
)
def test_other_settings_have_an_entry_of_their_own(load: Load, cache: Path, changes: Any) -> None:
    kept = facts(load())
    load(**changes)
    assert len([*cache.iterdir()]) == 2
    assert facts(load()) == kept


def test_a_file_of_the_same_size_and_time_with_other_content_is_read_anew(load: Load, source: Path) -> None:
    before, state = facts(load()), source.stat()
    source.write_text(source.read_text().replace('"prompt": "3?"', '"prompt": "x?"'))
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert source.stat().st_size == state.st_size
    after = load()
    assert facts(after) != before
    assert len(set(after.keys.tolist()) - set(before[1])) == 1


def test_another_tokenizer_with_the_same_name_has_an_entry_of_its_own(load: Load, make_tokenizer: Any) -> None:
    kept = facts(load())
    other = make_tokenizer(unk_token="<unk>", eos_token="<|endoftext|>")
    other.add_tokens(["9?"])
    assert facts(load(tokenizer=other)) != kept
    assert facts(load()) == kept


def test_a_date_counts_only_where_the_template_asks_for_it(load: Load, cache: Path, chatml: str) -> None:
    for date in ("2026-01-31", "2026-02-01"):
        load(date=date)
    assert len([*cache.iterdir()]) == 1
    for date in ("2026-01-31", "2026-02-01"):
        load(date=date, chat_template="{% if strftime_now is defined %}{% endif %}" + chatml)
    assert len([*cache.iterdir()]) == 3


def test_a_damaged_entry_is_made_anew_and_that_is_said(load: Load, cache: Path) -> None:
    kept = load()
    (entry,) = cache.iterdir()
    content = bytearray((entry / "ids").read_bytes())
    content[8] ^= 1
    (entry / "ids").write_bytes(content)
    anew = load()
    words = "are damaged (ids is not what was written): they were made anew"
    assert anew.remarks == (f"the tokens that were kept of {kept.source} {words}",)
    assert facts(anew)[:5] == facts(load())[:5]
    assert load().remarks == ()


def test_rows_that_go_through_the_users_code_are_not_kept(load: Load, cache: Path) -> None:
    load(filter="builtins:bool")
    assert not cache.exists()


def test_a_disk_that_fails_costs_only_the_entry(load: Load, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PackedWriter.append

    def fail_in_files(self: PackedWriter, *arguments: Any) -> None:
        original(self, *arguments)
        if self._directory is not None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackedWriter, "append", fail_in_files)
    made = facts(load())
    assert [*cache.iterdir()] == []
    monkeypatch.setattr(PackedWriter, "append", original)
    assert facts(load()) == made


def test_a_source_that_changes_meanwhile_is_read_once_more_and_not_kept(
    load: Load, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PackedWriter.append

    def change(self: PackedWriter, *arguments: Any) -> None:
        original(self, *arguments)
        source.write_text(source.read_text().replace("3?", "x?"))

    monkeypatch.setattr(PackedWriter, "append", change)
    load()
    assert [*cache.iterdir()] == []


def test_the_entries_that_were_not_used_for_longest_go_first(load: Load, cache: Path) -> None:
    entries: list[Path] = []
    for seed in range(3):
        load(seed=seed)
        (new,) = {*cache.iterdir()} - {*entries}
        entries.append(new)
        os.utime(new / "about.json", (seed, seed))
    load(seed=0)  # used just now
    size = sum(file.stat().st_size for file in entries[0].iterdir())
    kept_tokens._prune(cache, 2 * size + 100)
    assert {*cache.iterdir()} == {entries[0], entries[2]}


def test_examples_travel_as_arrays_that_nobody_copies(load: Load) -> None:
    load()
    rows = load()
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(rows, protocol=5, buffer_callback=buffers.append)
    assert any(buffer.raw().nbytes == rows.examples.ids.nbytes for buffer in buffers)  # type: ignore[attr-defined]
    assert facts(pickle.loads(pickled, buffers=buffers)) == facts(rows)
    assert [e.row for e in rows.examples[-2:]] == [rows.examples[-2].row, rows.examples[len(rows.keys) - 1].row]
    with pytest.raises(IndexError):
        rows.examples[len(rows.keys)]
