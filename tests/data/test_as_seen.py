"""A row as text: its pieces are the tokens that the model gets, no more and no less, and the right ones are marked."""

from typing import Any

import numpy as np
import pytest

from rayqd.data import tokenize_example
from rayqd.data.as_seen import see_row
from rayqd.data.chat_settings import ChatSettings
from rayqd.data.conversation import parse_row
from rayqd.types import Example

ROW = {"prompt": "How are\n\nyou?", "completion": "Well, <|im_end|> thanks"}


def example(tokenizer: Any, row: dict[str, str]) -> Example:
    return tokenize_example(tokenizer, parse_row(row), 7)


def test_pieces_are_the_whole_row_and_what_is_trained_on_is_the_answer_with_its_end(tokenizer: Any) -> None:
    """Against the template filled in by hand."""
    seen = see_row(tokenizer, example(tokenizer, ROW), [tokenizer.eos_token_id])
    prompt = "<|im_start|>user\nHow are\n\nyou?<|im_end|>\n<|im_start|>assistant\n"
    answer = "Well, <|im_end|> thanks<|im_end|>"
    assert "".join(piece.text for piece in seen.pieces) == prompt + answer
    assert "".join(piece.text for piece in seen.pieces if piece.is_trained) == answer
    assert {piece.text for piece in seen.pieces if piece.is_special} == {"<|im_start|>", "<|im_end|>"}
    assert (seen.row, seen.num_tokens, seen.num_trained) == (7, len(row_ids(tokenizer)), len("Well,  thanks") + 2)
    assert seen.end == "<|im_end|>"


def row_ids(tokenizer: Any) -> list[int]:
    messages = [{"role": "user", "content": ROW["prompt"]}, {"role": "assistant", "content": ROW["completion"]}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return ids[:-1]  # the line break after the end of turn is nobody's


def test_an_answer_that_was_cut_has_no_end(tokenizer: Any) -> None:
    cut = example(tokenizer, {"prompt": "Go", "completion": "on and on", "finish_reason": "length"})
    assert see_row(tokenizer, cut, [tokenizer.eos_token_id]).end == ""


def test_where_somebody_else_writes_the_prompt_is_all_there_is(tokenizer: Any) -> None:
    seen = see_row(tokenizer, example(tokenizer, ROW), [tokenizer.eos_token_id], writer="the student")
    assert seen.num_trained == 0
    assert "".join(piece.text for piece in seen.pieces).endswith("<|im_start|>assistant\n")
    assert seen.describe("trained on").endswith("tokens, and what the student writes after them")


def test_a_character_of_several_tokens_is_not_torn() -> None:
    """Bytes as tokens: half a character decodes to a replacement character, which the pieces must not have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*alphabet, "<end>"])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    prompt, answer = "Was hei\u00dft \u4f60\u597d? ", "Gr\u00fc\u00dfe \U0001f600<end>"
    parts = [np.asarray(tokenizer(text)["input_ids"], dtype=np.int32) for text in (prompt, answer)]
    seen = see_row(tokenizer, Example(row=0, prompt_ids=parts[0], completion_ids=parts[1]), [tokenizer.eos_token_id])
    assert [piece.text for piece in seen.pieces] == [prompt, answer.removesuffix("<end>"), "<end>"]


@pytest.mark.parametrize("text", ["plain words", "<|bos|>x"])
def test_of_plain_text_all_but_the_first_token_is_trained_on(tokenizer: Any, text: str) -> None:
    plain = example(tokenizer, {"text": text})
    seen = see_row(tokenizer, plain, [tokenizer.eos_token_id])
    assert seen.num_trained == seen.num_tokens - 1
    assert "".join(piece.text for piece in seen.pieces) == text


def test_of_turns_that_are_trained_on_each_is_marked(tokenizer: Any) -> None:
    """`data.train_on` = "all": the answers with their ends, as the template written by hand has them."""
    turns = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    conversation = parse_row({"messages": [{"role": role, "content": text} for role, text in turns]})
    seen = see_row(tokenizer, tokenize_example(tokenizer, conversation, 0, ChatSettings(train_on="all")), [])
    marked = "".join(f"[{piece.text}]" if piece.is_trained else piece.text for piece in seen.pieces)
    parts = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
    for turn in (1, 3):
        answer = turns[turn][1]
        parts[turn] = f"<|im_start|>assistant\n[{answer}][<|im_end|>]\n"
    assert marked == "".join(parts).removesuffix("\n")
    assert seen.num_trained == 4
