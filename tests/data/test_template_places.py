"""Thoughts, tools and calls: where a chat template has a place for them, and where it has none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from rayqd.data import tokenize_example
from rayqd.data.messages import Conversation
from rayqd.errors import DataError
from tests.data.chats import chat

Make = Callable[..., PreTrainedTokenizerFast]

R1 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}<think>{{ '\n' }}{% endif %}"
)
FORGETFUL = R1.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
CLOSING = R1.replace("{{ m.content }}", "{{ '</think>' if m.role == 'assistant' }}{{ m.content }}")


@pytest.mark.parametrize(
    ("template", "answer", "completion"),
    [
        (R1, {"content": "4"}, "4"),
        (R1, {"content": "<think>\nadd\n</think>\n\n4"}, "add\n</think>\n\n4"),
        (R1, {"content": "<think>add</think>4"}, "add</think>4"),
        (R1, {"content": "4", "reasoning_content": "add"}, "add\n</think>\n\n4"),
        (FORGETFUL, {"content": "4"}, "4"),
        (FORGETFUL, {"content": "<think>\nadd\n</think>\n\n4"}, "add\n</think>\n\n4"),
        (FORGETFUL, {"content": "add\n</think>\n\n4"}, "add\n</think>\n\n4"),
        (CLOSING, {"content": "4"}, "</think>4"),
    ],
)
def test_an_answer_follows_the_thought_that_the_generation_prompt_opens(
    make_tokenizer: Make, template: str, answer: dict[str, str], completion: str
) -> None:
    tokenizer = make_tokenizer(template)
    question = {"role": "user", "content": "2+2?"}
    example = tokenize_example(tokenizer, [question, {"role": "assistant", **answer}], row=0)
    prompt = str(tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt + completion + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert [*example.prompt_ids, *example.completion_ids] == ids
    assert prompt.endswith("<think>\n")


def test_a_thought_after_a_prompt_that_has_ended_it_is_a_data_error(make_tokenizer: Make, chatml: str) -> None:
    closed = chatml.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n\n</think>\n\n' }}")
    tokenizer = make_tokenizer(closed)
    assert len(tokenize_example(tokenizer, chat("Hi", "No"), row=0).completion_ids) == 3
    with pytest.raises(DataError, match="starts with <think>, and the chat template's generation prompt ends"):
        tokenize_example(tokenizer, chat("Hi", "<think>x</think>No"), row=0)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_that_the_template_has_no_place_for_is_a_data_error(
    tokenizer: PreTrainedTokenizerFast, field: str
) -> None:
    answer = {"role": "assistant", "content": "4", field: "add"}
    with pytest.raises(DataError, match=rf"messages\[1\].{field}: the chat template has no place for it"):
        tokenize_example(tokenizer, [{"role": "user", "content": "2+2"}, answer], row=0)
    earlier = [{"role": "user", "content": "2+2"}, answer, *chat("Sure?", "Yes")]
    assert len(tokenize_example(tokenizer, earlier, row=0).completion_ids) == 4


def test_tools_calls_and_developers_that_the_template_leaves_out_are_data_errors(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages if m.role != 'developer' %}{{ m.role + ': ' + (m.content or '') + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    function = {"type": "function", "function": {"name": "add", "arguments": {}}}
    with pytest.raises(DataError, match="tools: the chat template has no place for them, add is not in its text"):
        tokenize_example(tokenizer, Conversation(chat("Hi", "No"), tools=[function]), row=0)
    called = [*chat("Hi"), {"role": "assistant", "content": None, "tool_calls": [function]}]
    with pytest.raises(DataError, match=r"messages\[1\].tool_calls: the chat template has no place for it"):
        tokenize_example(tokenizer, [*called, {"role": "tool", "content": "4"}, *chat("And?", "No")[1:]], row=0)
    with pytest.raises(DataError, match=r"messages\[0\].content, of role developer: the chat template has no place"):
        tokenize_example(tokenizer, [{"role": "developer", "content": "Brief!"}, *chat("Hi", "No")], row=0)


def test_arguments_are_text_for_a_template_that_joins_them_to_text(make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ m.role + ': ' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    example = tokenize_example(make_tokenizer(template), messages, row=0)
    assert "".join(make_tokenizer(template).convert_ids_to_tokens(example.completion_ids.tolist())) == (
        'add{"a": 2}<|im_end|>'
    )
