"""Rows in the shapes in which people have them, and the conversation that each of them is."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from rayqd.config.sections import DataConfig
from rayqd.data import load_examples, read_rows
from rayqd.data.conversation import RowParser, UntrainedError, parse_prompt, parse_row
from rayqd.data.messages import Conversation
from rayqd.errors import DataError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
COLOUR, RED = {"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red"}


def turns(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


SHAPES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "ShareGPT (conversations)": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 3},
        turns("Hi", "Hello"),
    ),
    "Alpaca (instruction, output)": (
        {"instruction": "Add", "input": "2 2", "output": "4", "text": "### Instruction:\nAdd\n### Response:\n4"},
        turns("Add\n2 2", "4"),
    ),
    "question and answer (question, answer)": ({"question": "2+2?", "answer": "4"}, turns("2+2?", "4")),
    "preference pairs, the chosen one (prompt, chosen)": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        turns("q", "a"),
    ),
    "preference pairs, the chosen one (chosen)": (
        {"chosen": turns("q", "a"), "rejected": turns("q", "b")},
        turns("q", "a"),
    ),
    "prompt and answer (prompt, completion)": ({"prompt": [COLOUR], "completion": [RED]}, [COLOUR, RED]),
    "prompt and answer (prompt, response)": ({"prompt": "Hi", "response": "Hello"}, turns("Hi", "Hello")),
    "messages (messages)": ({"messages": turns("a", "b"), "prompt": "a", "source": "x"}, turns("a", "b")),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_recognized_by_its_columns(shape: str) -> None:
    row, messages = SHAPES[shape]
    conversation = parse_row(row)
    assert (list(conversation), conversation.shape) == (messages, shape)
    assert list(parse_prompt(row)) == messages[:-1]


def test_which_shape_was_taken_is_kept_with_the_examples(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [SHAPES["ShareGPT (conversations)"][0], SHAPES["question and answer (question, answer)"][0]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(source=str(file), max_length=64, min_room=1)
    kept = load_examples(tokenizer, data, seed=0, num_needed=2, context_length=64)
    assert sorted(kept.shapes) == ["ShareGPT (conversations)", "question and answer (question, answer)"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": turns("a", "b"), "instruction": "c", "output": "d"},
        {"prompt": "q", "completion": "a", "question": "another one?"},
        {"prompt": "q", "completion": "a", "text": "nothing of the kind"},
    ],
)
def test_a_row_in_two_shapes_that_differ_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"in two shapes at once, .* and they differ: say which columns count"):
        parse_row(row)


def test_columns_that_data_columns_names_count_alone() -> None:
    row = {"problem": "2+2?", "solution": "4", "messages": turns("x", "y"), "finish_reason": "length"}
    parser = RowParser(columns=(("completion", "solution"), ("prompt", "problem")))
    assert (list(parser(row)), parser(row).is_cut) == (turns("2+2?", "4"), True)
    with pytest.raises(DataError, match=r'data.columns: prompt = "problm" is no column of this row; did you mean prob'):
        RowParser(columns=(("completion", "solution"), ("prompt", "problm")))(row)


def test_tools_and_the_calls_of_a_conversation_stay_with_it() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    messages = [*turns("2+2?"), called, {"role": "tool", "name": "add", "content": "4"}, *turns("", "4")[1:]]
    conversation = parse_row({"messages": messages, "tools": TOOLS})
    assert (list(conversation), conversation.tools) == (messages, TOOLS)
    assert parse_row({"messages": messages, "tools": json.dumps(TOOLS)}).tools == TOOLS
    as_text = {**CALL, "function": {**CALL["function"], "arguments": '{"a": 2, "b": 2}'}}  # as OpenAI's files have them
    given = [*turns("2+2?"), {**called, "tool_calls": [as_text], "refusal": None}, *messages[2:]]
    assert list(parse_row({"messages": given, "tools": TOOLS})) == messages
    del given[1]["content"]  # which they may leave out
    assert list(parse_row({"messages": given, "tools": TOOLS})) == messages


def test_shareGPTs_calls_and_observations_are_calls_and_tools() -> None:  # noqa: N802
    said = [("human", "2+2?"), ("function_call", json.dumps(CALL["function"])), ("observation", "4"), ("gpt", "4")]
    row = {"conversations": [{"from": who, "value": value} for who, value in said], "system": "S", "tools": "[]"}
    conversation = parse_row(row)
    assert [message["role"] for message in conversation] == ["system", "user", "assistant", "tool", "assistant"]
    assert conversation[2]["tool_calls"] == [CALL]


def test_parts_of_text_are_joined_and_others_refuse_the_row() -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}]
    conversation = parse_row({"messages": [{"role": "user", "content": parts}, *turns("", "Hello")[1:]]})
    assert list(conversation) == turns("Hi you", "Hello")
    parts.append({"type": "image_url", "image_url": {"url": "x"}})
    with pytest.raises(DataError, match=r"messages\[0\].content\[2\] is a part of type 'image_url', and"):
        parse_row({"messages": [{"role": "user", "content": parts}, *turns("", "Hello")[1:]]})


def test_a_developer_and_a_name_are_the_templates_business() -> None:
    messages = [
        {"role": "developer", "content": "Be brief"},
        {**turns("Hi")[0], "name": "Eve"},
        *turns("", "Hello")[1:],
    ]
    assert list(parse_row({"messages": messages})) == messages


def test_messages_may_be_the_json_that_a_cell_of_a_table_holds() -> None:
    conversation = parse_row({"messages": json.dumps(turns("Hi", "Hello"))})
    assert (list(conversation), conversation.shape) == (turns("Hi", "Hello"), "messages (messages)")
    said = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert parse_row({"conversations": json.dumps(said)}).shape == "ShareGPT (conversations)"
    with pytest.raises(DataError, match=r"messages is text, and not the JSON of messages \(Expecting value"):
        parse_row({"messages": "Hi"})


def test_an_answer_that_is_labelled_as_a_bad_one_is_not_trained_on() -> None:
    row = {"prompt": "q", "completion": "a", "label": False}
    with pytest.raises(UntrainedError, match="label is false, which marks an answer that is not wanted"):
        parse_row(row)
    assert list(parse_row({**row, "label": True})) == turns("q", "a")
    assert list(parse_row({**row, "label": 0})) == turns("q", "a")  # a class, and no verdict
    assert list(RowParser(needs_answer=False)(row)) == turns("q", "a")
    renamed = RowParser(columns=(("prompt", "question"), ("completion", "reply")))
    with pytest.raises(UntrainedError, match="label is false"):
        renamed({"question": "q", "reply": "a", "label": False})
    assert list(renamed({"question": "q", "reply": "a", "label": "spam"})) == turns("q", "a")


WEIGHTED = [*turns("2+2?", "5"), *turns("Sure?", "No: 4")]


@pytest.mark.parametrize(("weights", "train_on", "trains"), [((1, 0), "last", False), ((1, 0), "all", True)])
def test_an_answer_of_weight_0_is_not_trained_on(weights: tuple[int, int], train_on: Any, trains: bool) -> None:
    messages = [dict(message) for message in WEIGHTED]
    messages[1]["weight"], messages[3]["weight"] = weights
    parser = RowParser(train_on=train_on)
    if trains:
        conversation = parser({"messages": messages})
        assert (list(conversation), conversation.untrained, conversation.has_answer) == (WEIGHTED, {3}, False)
    else:
        with pytest.raises(UntrainedError, match=r"messages\[3\].weight is 0"):
            parser({"messages": messages})
    assert list(RowParser(needs_answer=False)({"messages": messages})) == WEIGHTED


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "assistant", "content": "x", "weight": 0.5}, "weight must be 0 or 1, got 0.5"),
        (
            {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]},
            "must have a function with name",
        ),
        ({"role": "assistant", "content": "x", "tool_calls": "add"}, "tool_calls must be a list of objects, got text"),
    ],
)
def test_a_field_that_is_wrong_is_named(message: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=rf"messages\[1\].*{fault}"):
        parse_row({"messages": [*turns("Hi"), message]})


def test_a_row_whose_answers_have_weight_0_is_left_out_and_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    bad = [*turns("2+2?"), {"role": "assistant", "content": "5", "weight": 0}]
    file.write_text(json.dumps({"messages": bad}) + "\n" + json.dumps({"messages": turns("a", "b")}) + "\n")
    rows = read_rows(DataConfig(source=str(file)))
    assert [rows.row(0), rows.row(1)] == [None, turns("a", "b")]
    assert [str(left_out) for left_out in rows.left_out] == ["1 of weight 0"]


@pytest.mark.parametrize("row", [{"prompt": [COLOUR]}, {"prompt": "Name a colour."}, {"messages": [COLOUR]}])
def test_prompts_alone_will_do_where_no_answer_is_trained_on(row: dict[str, Any]) -> None:
    assert list(RowParser(needs_answer=False)(row)) == [COLOUR]
    with pytest.raises(DataError, match=r"prompts alone will do|last message must be the assistant's"):
        parse_row(row)


def test_a_conversation_travels_to_other_processes_whole() -> None:
    given = Conversation(WEIGHTED, tools=TOOLS, is_cut=True, untrained=[1], shape="messages (messages)")
    read = pickle.loads(pickle.dumps(given))
    assert (list(read), vars(read)) == (WEIGHTED, vars(given))
    assert pickle.loads(pickle.dumps(RowParser(columns=(("prompt", "q"),)))) == RowParser(columns=(("prompt", "q"),))
