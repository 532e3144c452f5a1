"""Completions as text, and what a reader makes of that text: the same tokens, or a row that says that it does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from rayqd.data import tokenize_example
from rayqd.data.detokenize import Detokenizer
from rayqd.data.messages import Conversation
from rayqd.data.prompts import Prompt
from rayqd.data.stops import end_token_ids
from rayqd.data.template import tokenize_prompt
from tests.data.reading import open_rows

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def ids(tokenizer: Any, text: str) -> Any:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def row_of(tokenizer: Any, completion: str | Any) -> Any:
    prompt = Prompt(row=7, messages=MESSAGES, token_ids=tokenize_prompt(tokenizer, MESSAGES))
    completion_ids = ids(tokenizer, completion) if isinstance(completion, str) else completion
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    return Detokenizer(tokenizer, ends).to_row(prompt, completion_ids)


def test_a_whole_completion_keeps_its_conversation_and_comes_back_token_for_token(tokenizer: Any) -> None:
    row = row_of(tokenizer, "Because.\n\n(Really.)<|im_end|>")
    assert row == {
        "messages": [*MESSAGES, {"role": "assistant", "content": "Because.\n\n(Really.)"}],
        "finish_reason": "stop",
        "row": 7,
        "num_tokens": 19,  # 8 characters, one token of two line breaks, 9 characters, the end
        "same_tokens": True,
    }


def test_a_cut_completion_is_read_back_without_an_end(tokenizer: Any, tmp_path: Path) -> None:
    row = row_of(tokenizer, "Because of")
    assert (row["finish_reason"], row["same_tokens"], row["num_tokens"]) == ("length", True, 10)
    file = tmp_path / "rows.jsonl"
    whole = {key: value for key, value in row.items() if key != "finish_reason"}
    file.write_text("".join(json.dumps(each) + "\n" for each in (row, whole)))
    rows = open_rows(str(file), "train", on_bad_row="error")
    cut, ended = (tokenize_example(tokenizer, rows.row(i) or [], i).completion_ids.tolist() for i in (0, 1))
    assert cut == ids(tokenizer, "Because of").tolist()
    assert ended == [*cut, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_a_cut_completion_without_a_chat_template_has_no_end_either(make_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat_template=None)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "Why?", "completion": "Because of", "finish_reason": "length"}\n')
    messages = open_rows(str(file), "train", on_bad_row="error").row(0)
    example = tokenize_example(tokenizer, messages or [], 0)
    assert example.completion_ids.tolist() == ids(tokenizer, "Because of").tolist()


def test_tokens_that_text_cannot_tell_apart_are_counted_as_others(tokenizer: Any) -> None:
    line_break = tokenizer.convert_tokens_to_ids("\n")
    sampled = np.asarray([*ids(tokenizer, "a"), line_break, line_break, *ids(tokenizer, "b<|im_end|>")])
    row = row_of(tokenizer, sampled)
    assert row["messages"][-1]["content"] == "a\n\nb"
    assert (row["same_tokens"], row["num_tokens"]) == (False, 5)


def test_a_completion_that_ends_in_another_way_than_the_template_keeps_its_text_alone(tokenizer: Any) -> None:
    row = row_of(tokenizer, "Because.<|endoftext|>")
    assert row["messages"][-1]["content"] == "Because."
    assert (row["finish_reason"], row["same_tokens"]) == ("stop", False)


def test_a_completion_that_no_reader_would_take_is_no_row(tokenizer: Any) -> None:
    assert row_of(tokenizer, "<|im_end|>") is None
    assert row_of(tokenizer, " \n<|im_end|>") is None


def test_a_turn_that_the_template_ends_with_more_than_a_token_does_not_get_that_twice(
    make_tokenizer: Any, chatml: str
) -> None:
    tokenizer = make_tokenizer(chat_template=chatml.replace("+ '<|im_end|>'", "+ '\n<|im_end|>'"))
    row = row_of(tokenizer, "Because.\n<|im_end|>")
    assert (row["messages"][-1]["content"], row["same_tokens"]) == ("Because.", True)


def test_half_a_character_at_a_cut_is_left_away() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    euro = ids(tokenizer, "5 €")
    assert len(euro) == 5  # three bytes for the sign
    row = row_of(tokenizer, euro[:-1])
    assert (row["messages"][-1]["content"], row["same_tokens"]) == ("5 ", False)
    assert row_of(tokenizer, euro)["same_tokens"] is True


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [4, 90]}}, [3, 4, 90]),  # 3 is <|im_end|>
        ({"generation_config.json": {"eos_token_id": 4}}, [3, 4]),
        ({"generation_config.json": {}}, [3]),
        ({}, [3, 50]),  # config.json's
    ],
)
def test_ends_are_the_templates_the_tokenizers_and_those_of_the_generation_config(
    make_tokenizer: Any, tmp_path: Path, files: dict[str, Any], expected: list[int]
) -> None:
    LlamaConfig(eos_token_id=50).save_pretrained(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert end_token_ids(make_tokenizer(), tmp_path) == tuple(expected)
    other_eos = make_tokenizer(eos_token="<|endoftext|>")  # 4, beside the template's 3
    assert end_token_ids(other_eos, tmp_path) == tuple(sorted({*expected, 4}))


def test_a_row_keeps_its_tools_and_the_thought_that_its_prompt_opened(make_tokenizer: Any) -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}<think>{{ '\n' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    tools: Any = [{"type": "function", "function": {"name": "add"}}]
    asked = Conversation(MESSAGES, tools=tools)
    prompt = Prompt(row=7, messages=asked, token_ids=tokenize_prompt(tokenizer, asked))
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    row: Any = Detokenizer(tokenizer, ends).to_row(prompt, ids(tokenizer, "Hm.\n</think>\n\nAs is.<|im_end|>"))
    assert row["messages"][-1]["content"] == "<think>\nHm.\n</think>\n\nAs is."
    assert (row["tools"], row["finish_reason"], row["same_tokens"]) == (tools, "stop", True)


def test_a_text_that_stops_a_completion_is_left_out_of_its_row(tokenizer: Any) -> None:
    prompt = Prompt(row=7, messages=MESSAGES, token_ids=tokenize_prompt(tokenizer, MESSAGES))
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    row: Any = Detokenizer(tokenizer, ends, stop=["END", "\nUser"]).to_row(prompt, ids(tokenizer, "Because.\nUser"))
    assert (row["messages"][-1]["content"], row["finish_reason"], row["same_tokens"]) == ("Because.", "stop", False)
