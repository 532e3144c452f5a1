import json
from pathlib import Path
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.data import load_examples
from rayqd.data.prompts import Prompts
from rayqd.errors import ConfigError, DataError

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
QUESTION = {"role": "user", "content": "Why?"}
COMPLETION = {"role": "assistant", "content": "Because."}


def prompts_of(tokenizer: Any, tmp_path: Path, *rows: object, **data: Any) -> Prompts:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"source": str(source), "max_length": 128, "min_room": 8} | data
    return Prompts(tokenizer, Config.model_validate({"data": settings}), context_length=512)


def test_the_last_completion_is_left_out_and_everything_before_it_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    prompts = prompts_of(
        tokenizer,
        tmp_path,
        {"messages": [SYSTEM, *TURNS, QUESTION, COMPLETION]},
        {"messages": [SYSTEM, *TURNS, QUESTION]},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": "Why?"},
    )
    found = {prompt.row: prompt for prompt in prompts.remaining(set(), None)}
    assert found[0].messages == found[1].messages == [SYSTEM, *TURNS, QUESTION]
    assert found[2].messages == found[3].messages == [QUESTION]
    text = tokenizer.decode(found[0].token_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert text.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")


def test_order_and_tokens_are_those_of_a_run(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "completion": f"{i}."} for i in range(20)]
    prompts = prompts_of(tokenizer, tmp_path, *rows)
    config = Config.model_validate({"data": {"source": prompts.source, "max_length": 128}})
    examples = load_examples(tokenizer, config.data, seed=config.seed, num_needed=20, context_length=512).examples
    assert [(p.row, p.token_ids.tolist()) for p in prompts.remaining(set(), None)] == [
        (e.row, e.prompt_ids.tolist()) for e in examples
    ]


def test_a_long_completion_of_the_data_keeps_no_prompt_out_and_a_long_prompt_is_counted(
    tokenizer: Any, tmp_path: Path
) -> None:
    # The template puts 37 characters and special tokens around a prompt; 128 - 8 leaves 120.
    around = len(prompts_of(tokenizer, tmp_path, {"prompt": "x"})._prompt(0).token_ids) - 1
    fits, not_quite = "x" * (120 - around), "x" * (121 - around)
    prompts = prompts_of(
        tokenizer, tmp_path, {"prompt": fits, "completion": "y" * 500}, {"prompt": not_quite, "completion": "y"}
    )
    assert [prompt.row for prompt in prompts.remaining(set(), None)] == [0]
    assert prompts.num_too_long == 1


def test_a_limit_counts_the_prompts_that_are_kept_and_those_that_are_done(tokenizer: Any, tmp_path: Path) -> None:
    rows: list[dict[str, str]] = [{"prompt": "x" * (200 if i % 2 else 1)} for i in range(20)]
    prompts = prompts_of(tokenizer, tmp_path, *rows)
    first = [prompt.row for prompt in prompts.remaining(set(), 4)]
    assert len(first) == 4
    assert all(row % 2 == 0 for row in first)
    assert [prompt.row for prompt in prompts.remaining({first[0], first[2]}, 4)] == [first[1], first[3]]
    assert [prompt.row for prompt in prompts.remaining(set(first), 6)] == [p.row for p in prompts.remaining(set(), 6)][
        4:
    ]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"text": "Once upon a time"}, "there is nothing to answer: neither messages nor prompt, got the keys text"),
        ({}, "there is nothing to answer: neither messages nor prompt, got no keys"),
        ({"messages": []}, "messages must be a list with something in it"),
        ({"messages": [COMPLETION]}, "there is an answer but nothing before it"),
        ({"prompt": " "}, "prompt is empty"),
        ({"messages": [{"role": "human", "content": "Hi"}]}, "messages[0].role must be one of"),
    ],
)
def test_a_row_without_a_prompt_is_an_error_with_its_place(
    tokenizer: Any, tmp_path: Path, row: object, fault: str
) -> None:
    with pytest.raises(DataError) as caught:
        prompts_of(tokenizer, tmp_path, row)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: ")
    assert fault in str(caught.value)


def test_a_row_without_a_prompt_can_be_skipped(tokenizer: Any, tmp_path: Path) -> None:
    prompts = prompts_of(tokenizer, tmp_path, {"text": "x"}, {"prompt": "Why?"}, on_bad_row="skip")
    assert [prompt.row for prompt in prompts.remaining(set(), None)] == [1]
    assert prompts.num_skipped == 1


def test_lengths_beyond_the_model_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.max_length=1024 is above the 512 tokens"):
        prompts_of(tokenizer, tmp_path, {"prompt": "Why?"}, max_length=1024)
