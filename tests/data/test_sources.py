import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetNotFoundError

from rayqd.config import Config
from rayqd.config.data_source import existing_file_of_source, path_of_source
from rayqd.config.resolved import with_absolute_paths
from rayqd.config.sections import DataConfig
from rayqd.data import Rows, read_rows
from rayqd.data.left_out import Reason
from rayqd.errors import DataError
from tests.data.reading import open_rows

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "id": 7}
USER = {"role": "user", "content": "Hi"}


def _write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return str(path)


def _messages(*messages: object) -> str:
    return json.dumps({"messages": list(messages)})


BROKEN = [
    ('{"messages": [', "the line is not one JSON object"),
    ("[1, 2]", "a row must be an object, got a list"),
    (b'{"prompt": "caf\xe9", "completion": "x"}', "not UTF-8 (byte 15 of the line)"),
    ('{"words": "only"}', "neither messages nor prompt with completion or response, nor text, got the keys words"),
    ("{}", "got no keys"),
    ('{"prompt": "Hi"}', "neither messages nor prompt with completion or response, nor text"),
    ('{"prompt": "Hi", "completion": 3}', "completion must be text, got a number"),
    ('{"prompt": ["Hi"], "response": "x"}', "prompt must be text, got a list"),
    ('{"prompt": "Hi", "response": ""}', "response is empty"),
    ('{"messages": []}', "messages must be a list with something in it, got an empty list"),
    ('{"messages": "Hi"}', "messages is text, and not the JSON of messages"),
    (_messages("Hi"), "messages[0] must be an object with role and content, got text"),
    (_messages({"role": "human", "content": "Hi"}), "messages[0].role must be one of system, user, assistant, tool"),
    (_messages({"role": ["user"], "content": "Hi"}), "messages[0].role must be one of"),
    (
        _messages({"content": "Hi"}),
        "messages[0].role must be one of system, user, assistant, tool, developer, function, got None",
    ),
    (_messages(USER, {"role": "assistant", "content": ""}), "messages[1].content is empty"),
    (_messages(USER, {"role": "assistant", "content": " \n\t"}), "messages[1].content is empty"),
    (_messages(USER, {"role": "assistant", "content": None}), "messages[1].content must be text, got nothing"),
    (_messages(USER, {"role": "assistant", "content": ["x"]}), "messages[1].content must be text, got a list"),
    (_messages(USER, {"role": "assistant", "content": "a\ud800"}), "half of a surrogate pair at character 1"),
    (_messages(USER, {"role": "assistant", "content": "x"}, USER), "the last message must be the assistant's"),
    (_messages({"role": "assistant", "content": "x"}), "nothing before it to answer"),
    ("1" * 5000, "the line is JSON that cannot be read"),
]


@pytest.mark.parametrize(("line", "fault"), BROKEN, ids=[fault for _, fault in BROKEN])
def test_a_broken_row_is_an_error_with_its_file_line_fault_and_way_out(
    tmp_path: Path, line: str | bytes, fault: str
) -> None:
    # The blank second line is no row, but it counts as a line: the broken one is the third.
    source = _write(tmp_path / "rows.jsonl", json.dumps(GOOD), "", line, json.dumps(GOOD))
    with pytest.raises(DataError) as caught:
        open_rows(source, "train", on_bad_row="error")
    message = str(caught.value)
    assert message.startswith(f"{source}:3: ")
    assert fault in message
    assert message.endswith('; fix it or set data.on_bad_row = "skip"')
    assert "\n" not in message


def test_skipped_rows_are_none_counted_once_and_the_first_three_have_reasons(tmp_path: Path) -> None:
    source = _write(tmp_path / "rows.jsonl", json.dumps(GOOD), *["{}"] * 7, json.dumps(GOOD))
    rows = open_rows(source, "train", on_bad_row="skip")
    assert rows.num_left_out(Reason.BROKEN) == 7  # the file is checked whole at once
    assert [rows.row(i) is None for i in range(len(rows))] == [False, *[True] * 7, False]
    assert rows.num_left_out(Reason.BROKEN) == 7
    (left_out,) = rows.left_out
    assert [row.location for row in left_out.first] == [f"{source}:{line}" for line in range(2, 5)]


def test_a_row_of_messages_keeps_all_that_a_template_may_read(tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "S", "name": "x"}, *GOOD["messages"]], "score": 0.5}
    rows = open_rows(_write(tmp_path / "rows.jsonl", json.dumps(row)), "train", on_bad_row="error")
    assert rows.row(0) == row["messages"]


@pytest.mark.parametrize("key", ["completion", "response"])
def test_a_prompt_and_its_completion_are_a_users_and_an_assistants_message(tmp_path: Path, key: str) -> None:
    rows = open_rows(
        _write(tmp_path / "rows.jsonl", json.dumps({"prompt": " Hi", key: "Hello\n"})), "train", on_bad_row="error"
    )
    assert rows.row(0) == [{"role": "user", "content": " Hi"}, {"role": "assistant", "content": "Hello\n"}]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feeds_end_a_row(tmp_path: Path, separator: str) -> None:
    row = {"prompt": f"a{separator}b", "completion": "c"}
    text = json.dumps(row, ensure_ascii=False)
    assert len(f"{row['prompt']}".splitlines()) == 2  # what splitlines would do to it
    rows = open_rows(_write(tmp_path / "rows.jsonl", text, text), "train", on_bad_row="error")
    assert len(rows) == 2
    messages = rows.row(1)
    assert messages is not None
    assert messages[0]["content"] == f"a{separator}b"


def test_a_file_from_windows_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode())
    rows = open_rows(str(path), "train", on_bad_row="error")
    assert [rows.row(0), rows.row(1)] == [GOOD["messages"]] * 2


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.json", "absent"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    source = str(tmp_path / name)
    with pytest.raises(DataError, match="cannot read the data file") as caught:
        open_rows(source, "train", on_bad_row="error")
    assert source in str(caught.value)


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    rows = open_rows(_write(tmp_path / "rows.txt", json.dumps(GOOD)), "train", on_bad_row="error")
    assert rows.row(0) == GOOD["messages"]


def test_the_quickstart_set_has_no_other_splits_than_train_and_test() -> None:
    with pytest.raises(DataError, match='no split "validation": give one of train, test'):
        open_rows("quickstart", "validation", on_bad_row="error")


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_row_of_the_quickstart_set_is_whole(split: str) -> None:
    assert len(open_rows("quickstart", split, on_bad_row="error")) > 0


def _hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]]) -> list[tuple[str, str]]:
    asked: list[tuple[str, str]] = []

    def load_dataset(source: str, *, split: str) -> datasets.Dataset:
        asked.append((source, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_set_is_read_row_by_row_and_counts_what_it_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _hub(monkeypatch, [GOOD, {"messages": [USER]}, {"messages": []}])
    rows: Rows = open_rows("some/set", "train", on_bad_row="skip")
    assert asked == [("some/set", "train")]
    assert (len(rows), rows.num_left_out(Reason.BROKEN)) == (3, 0)
    assert rows.row(0) == GOOD["messages"]
    assert (rows.row(2), rows.row(2), rows.num_left_out(Reason.BROKEN)) == (None, None, 1)
    assert rows.row(1) is None
    assert rows.num_left_out(Reason.BROKEN) == 2
    assert str(rows.left_out[0].first[0]).startswith("some/set (train), row 2: messages must be a list")


def test_a_broken_row_of_a_hub_set_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _hub(monkeypatch, [GOOD, {"messages": [USER]}])
    rows = open_rows("some/set", "train", on_bad_row="error")
    with pytest.raises(DataError, match=r"^some/set \(train\), row 1: the last message must be the assistant's"):
        rows.row(1)


def test_left_to_itself_a_broken_row_stops_a_file_and_is_left_out_of_a_hub_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:1: the last message"):
        open_rows(_write(tmp_path / "rows.jsonl", json.dumps({"messages": [USER]})), "train", on_bad_row="auto")
    _hub(monkeypatch, [{"messages": [USER]}])
    rows = open_rows("some/set", "train", on_bad_row="auto")
    assert (rows.row(0), rows.num_left_out(Reason.BROKEN)) == (None, 1)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ConnectionError("Couldn't reach 'some/set' on the Hub"), 'cannot reach the hub for the data set "some/set"'),
        (DatasetNotFoundError("No set 'some/set'"), "split \"train\": No set 'some/set'; give"),
        (
            ValueError("Unknown split \"train\". Should be one of ['test'].\nMore"),
            'there is no split "train": give one of test',
        ),
    ],
    ids=["no network", "no such set", "no such split"],
)
def test_a_hub_set_that_cannot_be_had_is_one_line_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def load_dataset(source: str, *, split: str) -> datasets.Dataset:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        open_rows("some/set", "train", on_bad_row="error")
    assert said in str(caught.value)
    assert ".jsonl file" in str(caught.value) or "give one of test" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_or_folder_called_quickstart_hides_the_quickstart_set_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "quickstart", json.dumps(GOOD))
    config = with_absolute_paths(Config())
    config = with_absolute_paths(config.model_copy(update={"data": DataConfig(source="quickstart")}))
    assert config.data.source == "quickstart"
    assert len(open_rows(config.data.source, "train", on_bad_row="error")) > 1


@pytest.mark.parametrize(
    ("source", "is_path"),
    [
        ("there.txt", True),  # a file that exists, whatever its name
        ("gone.jsonl", True),
        ("gone.parquet", True),
        ("gone.jsonl.gz", True),
        ("*.jsonl", False),  # several files
        ("s3://bucket/gone.jsonl", False),
        ("org/gone.json", True),
        ("./gone", True),
        ("/gone", True),
        ("~/gone", True),
        ("../gone.txt", True),
        ("org/set", False),
        ("set.v2", False),
        ("folder", False),  # load_dataset takes a folder
        ("./folder", False),
        ("quickstart", False),
    ],
)
def test_a_source_is_a_file_or_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, is_path: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.txt").touch()
    (tmp_path / "folder").mkdir()
    assert (path_of_source(source) is not None) == is_path
    assert (existing_file_of_source(source) is not None) == (source == "there.txt")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"mesages": [], "conversation_id": 1}, "did you mean messages by mesages? say in data.columns"),
        ({"prompt": "a", "completon": "b"}, "did you mean completion by completon? prompts alone will do"),
        ({"instructions": "a", "output": "b"}, "did you mean instruction by instructions? say in"),
        ({"foo": "a"}, "got the keys foo: say in data.columns"),
    ],
)
def test_a_mistyped_column_gets_the_nearest_name(row: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=re.escape(what)):
        read_rows(DataConfig(source=str(path)))


def test_a_mistyped_file_or_split_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"No such file or directory; did you mean prompts.jsonl\?"):
        read_rows(DataConfig(source=str(tmp_path / "promts.jsonl")))
    with pytest.raises(DataError, match=r'no split "trian": did you mean train\? give one of train, test'):
        read_rows(DataConfig(source="quickstart", split="trian"))
