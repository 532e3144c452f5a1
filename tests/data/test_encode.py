"""Many rows at a time give the tokens that each gives alone, which test_families.py holds to the template by hand."""

from typing import Any

import numpy as np
import pytest

from rayqd.data import encode, fast_tokenizer
from rayqd.data.chat_settings import ChatSettings
from rayqd.data.encode import Encoder, RenderedRow
from rayqd.data.messages import Conversation
from rayqd.data.template import tokenize_example, tokenize_examples
from rayqd.errors import DataError
from tests.data.families import CONVERSATIONS, DATE, FAMILIES, assistant, tokenizer_of, tools_of, user

ANSWERS = ("Yes.", "\nNo", "\n\nMaybe", " so", "<|im_start|>x", "a<|endoftext|>")
MANY = [
    *(Conversation(messages, tools=tools_of(name)) for name, messages in CONVERSATIONS.items()),
    *(Conversation([user(f"{i}?"), assistant(answer + str(i))]) for i in range(30) for answer in ANSWERS),
    Conversation([user("a?")]),
    Conversation([{"role": "text", "content": "Once upon\n\na time."}]),
    Conversation([user("a?"), assistant("b")], untrained=[1]),
    Conversation([user("a?"), assistant("b"), user("c?"), assistant("d")], is_cut=True),
]


@pytest.mark.parametrize("train_on", ["last", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_many_rows_give_the_tokens_that_each_gives_alone(family: str, train_on: Any) -> None:
    tokenizer, chat = tokenizer_of(family), ChatSettings(date=DATE, train_on=train_on)
    encoder = Encoder(tokenizer)
    made = [*tokenize_examples(encoder, MANY[:150], range(150), chat)]
    made += tokenize_examples(encoder, MANY[150:], range(150, len(MANY)), chat)
    num_examples = 0
    for row, (conversation, example) in enumerate(zip(MANY, made, strict=True)):
        if isinstance(example, DataError):
            with pytest.raises(DataError) as caught:
                tokenize_example(tokenizer, conversation, row, chat)
            assert str(caught.value) == str(example)
            continue
        alone = tokenize_example(tokenizer, conversation, row, chat)
        assert (example.row, alone.row) == (row, row)
        assert example.prompt_ids.tolist() == alone.prompt_ids.tolist()
        assert example.completion_ids.tolist() == alone.completion_ids.tolist()
        assert (example.trained is None) == (alone.trained is None)
        assert example.trained is None or np.array_equal(example.trained, alone.trained)
        num_examples += 1
    assert num_examples > 150


def _rows(number: int) -> list[RenderedRow]:
    return [RenderedRow(prompt=f"<|im_start|>{i}<|im_end|>\n", completion=f"\n{i}<|im_end|>") for i in range(number)]


def test_after_the_first_rows_prompts_are_not_tokenized_by_themselves(
    make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    original = encode.tokenize
    monkeypatch.setattr(encode, "tokenize", lambda tokenizer, given: texts.extend(given) or original(tokenizer, given))
    bare: list[str] = []
    fast = fast_tokenizer.tokenize_fast
    monkeypatch.setattr(fast_tokenizer, "tokenize_fast", lambda own, given: bare.extend(given) or fast(own, given))
    encoder = Encoder(make_tokenizer())
    rows = [RenderedRow(prompt=f"<|im_start|>{i}<|im_end|>:", completion="x<|im_end|>") for i in range(300)]
    for start in range(0, 300, 60):
        encoder.encode(rows[start : start + 60])
    # Of the first 60 the ending is learned, and 64 more are to be checked; the other two batches are tokenized once,
    # without the places of their tokens.
    assert len([text for text in texts if text.endswith(":")]) == 60 * 3
    assert len(texts) == 60 * 3 * 2
    assert bare == [row.prompt + row.completion for row in rows[60:]]


def test_a_special_token_in_an_answer_moves_no_boundary(make_tokenizer: Any) -> None:
    """Which is found by counting: in the prompt, in the completion, and as a token that only looks like it."""
    tokenizer = make_tokenizer()
    texts = ["a", "<|im_end|> b", "c <|im_end|><|im_end|>", "<|im_end", "|im_end|>", "<<|im_end|>>", "<|im_start|>"]
    rows = [
        RenderedRow(prompt=f"<|im_start|>{asked}<|im_end|>\n", completion=f"{answer}<|im_end|>")
        for asked in texts
        for answer in texts
    ]
    encoder = Encoder(tokenizer)
    for _ in range(4):
        encoded = encoder.encode(rows)
    assert all(ending.num_checked >= encode._NUM_CHECKED for ending in encoder._endings)
    for row, found in zip(rows, encoded, strict=True):
        prompt = tokenizer(row.prompt, add_special_tokens=False).input_ids
        both = tokenizer(row.prompt + row.completion, add_special_tokens=False).input_ids
        assert found.prompt_ids == prompt
        assert found.prompt_ids + found.completion_ids == both


def test_a_tokenizer_with_code_of_its_own_is_called_for_every_row(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()

    class Own(type(tokenizer)):
        def __call__(self, text: list[str], **options: Any) -> Any:
            return super().__call__([each.upper() for each in text], **options)

    assert encode.calls_backend(tokenizer)
    tokenizer.__class__ = Own
    assert not encode.calls_backend(tokenizer)
    encoder = Encoder(tokenizer)
    for _ in range(3):
        encoded = encoder.encode(_rows(80))
    assert encoded == Encoder(tokenizer).encode(_rows(80))
    assert encoded[11].prompt_ids == tokenizer(["<|im_start|>11<|im_end|>\n"], add_special_tokens=False).input_ids[0]


def test_an_ending_that_does_not_hold_is_found_before_a_row_is_given_out(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    wanted = Encoder(tokenizer).encode(_rows(40))
    encoder = Encoder(tokenizer)
    encoder.encode(_rows(1))
    (ending,) = encoder._endings
    ending.ids = [*ending.ids[:-1], 7]  # as of a tokenizer that reads what comes after a special token otherwise
    assert encoder.encode(_rows(40)) == wanted
    assert encoder.encode(_rows(200))[:40] == wanted
