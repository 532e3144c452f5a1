"""Rows without a chat template: a prompt and its completion, or a text, as they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rayqd.data import Message, tokenize_example
from rayqd.data.conversation import parse_row
from rayqd.errors import DataError, ModelError
from tests.data.chats import chat

Make = Callable[..., PreTrainedTokenizerFast]


def test_without_a_template_a_prompt_and_a_completion_are_plain_text_and_end_of_text(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(None, eos_token="<|endoftext|>")
    example = tokenize_example(tokenizer, chat("2+2=", "4"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist()) == ["2", "+", "2", "="]
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["4", "<|endoftext|>"]


def test_without_a_template_the_start_token_is_there_if_the_tokenizer_writes_it(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(None, bos_token="<|bos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.convert_tokens_to_ids("<|bos|>"))]
    )
    example = tokenize_example(tokenizer, chat("Hi", "No"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist()) == ["<|bos|>", "H", "i"]
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["N", "o", "<|im_end|>"]


@pytest.mark.parametrize("messages", [chat("Hi", "Hello", "And?", "Nothing"), chat("Hi", "Hello", system="Be brief")])
def test_without_a_template_anything_else_is_a_model_error(make_tokenizer: Make, messages: list[Message]) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        tokenize_example(make_tokenizer(None), messages, row=0)


def test_a_plain_completion_without_an_end_of_text_token_is_a_model_error(make_tokenizer: Make) -> None:
    with pytest.raises(ModelError, match="has no end-of-text token"):
        tokenize_example(make_tokenizer(None, eos_token=None), chat("Hi", "No"), row=0)


def test_of_a_plain_text_every_token_but_the_first_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Hi, <|im_end|>!"
    example = tokenize_example(tokenizer, parse_row({"text": text, "id": 3}), row=1)
    whole = tokenizer(text)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in whole
    assert (example.prompt_ids.tolist(), example.completion_ids.tolist()) == (whole[:1], whole[1:])


def test_a_plain_text_of_one_token_is_a_data_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="leaves nothing to predict"):
        tokenize_example(tokenizer, parse_row({"text": "H"}), row=1)


def test_a_start_token_that_a_text_has_already_is_not_doubled(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(bos_token="<|bos|>")
    start = tokenizer.convert_tokens_to_ids("<|bos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", start)]
    )
    for text in ("Hi", "<|bos|>Hi"):
        example = tokenize_example(tokenizer, parse_row({"text": text}), row=0)
        assert [*example.prompt_ids, *example.completion_ids] == tokenizer("Hi")["input_ids"]


def test_a_tokenizer_of_mistrals_own_without_a_template_is_a_model_error(make_tokenizer: Make, tmp_path: Path) -> None:
    (tmp_path / "tekken.json").touch()
    tokenizer = make_tokenizer(None, name_or_path=str(tmp_path))
    with pytest.raises(ModelError, match=r"tekken.json and no chat template: install mistral-common, .* rows of text"):
        tokenize_example(tokenizer, chat("Hi", "No"), row=0)
    assert tokenize_example(tokenizer, parse_row({"text": "Hi"}), row=0).prompt_ids.tolist()
