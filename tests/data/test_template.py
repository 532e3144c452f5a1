import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rayqd.data import Message, tokenize_example
from rayqd.data.chat_settings import ChatSettings
from rayqd.data.render import check_variables
from rayqd.data.template import tokenize_prompt
from rayqd.errors import ConfigError, DataError, ModelError
from tests.data.chats import chat

Make = Callable[..., PreTrainedTokenizerFast]


CONVERSATIONS = {
    "one turn": chat("Hi", "Hello"),
    "several turns": chat("Hi", "Hello", "And?", "Nothing"),
    "a system message": chat("Hi", "Hello", system="Be brief"),
    "white space around": chat(" Hi\n\n", " Hello \n"),
    "special tokens in the answer": chat("Hi", "a<|im_end|>\nb"),
    "the probe's own word": chat("rayqd", "rayqd rayqd"),
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_prompt_and_completion_are_the_rendered_conversation_up_to_the_end_of_turn(
    tokenizer: PreTrainedTokenizerFast, messages: list[Message]
) -> None:
    example = tokenize_example(tokenizer, messages, row=3)
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    line_break = tokenizer.convert_tokens_to_ids("\n")
    assert [*example.prompt_ids, *example.completion_ids, line_break] == whole
    assert example.completion_ids[-1] == end
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert example.prompt_ids.tolist() == prompt
    assert example.row == 3
    assert (example.prompt_ids.dtype, example.completion_ids.dtype) == (np.int32, np.int32)


def test_the_completion_is_the_last_message_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    example = tokenize_example(tokenizer, chat("Hi", "Hello", "And?", "No"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["N", "o", "<|im_end|>"]


def test_the_prompt_is_what_an_engine_gets_even_if_the_completion_would_merge_into_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # "assistant\n" + "\nHi": tokenized whole the two line breaks are one token, which no engine is given as a prompt.
    example = tokenize_example(tokenizer, chat("Hi", "\nHi"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist())[-2:] == ["t", "\n"]
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["\n", "H", "i", "<|im_end|>"]


def test_a_start_token_is_there_once_if_the_template_writes_it(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + chatml, bos_token="<|bos|>")
    start = tokenizer.convert_tokens_to_ids("<|bos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", start)]
    )
    ids = tokenize_example(tokenizer, chat("Hi", "Hello"), row=0).prompt_ids.tolist()
    assert (ids[0], ids.count(start)) == (start, 1)


def test_what_is_left_out_after_the_end_of_turn_may_be_a_special_token_too(make_tokenizer: Make, chatml: str) -> None:
    # Phi-3 writes "<|end|>\n<|endoftext|>" after the last answer; models stop at the first of them.
    template = chatml
    tokenizer = make_tokenizer(template + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}")
    ids = tokenize_example(tokenizer, chat("Hi", "No"), row=0).completion_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["N", "o", "<|im_end|>"]


def test_a_template_without_an_end_of_turn_gets_the_end_of_text_token(make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template, eos_token="<|endoftext|>")
    ids = tokenize_example(tokenizer, chat("Hi", "No"), row=0).completion_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == [" ", "N", "o", "<|endoftext|>"]


def test_text_the_template_puts_before_a_completion_belongs_to_the_completion(
    make_tokenizer: Make, chatml: str
) -> None:
    # Qwen3 writes an empty thought before an answer without one, and not in the generation prompt.
    template = chatml.replace(
        "+ message['content']", "+ ('()' if message['role'] == 'assistant' else '') + message['content']"
    )
    tokenizer = make_tokenizer(template)
    ids = tokenize_example(tokenizer, chat("Hi", "No"), row=0).completion_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["(", ")", "N", "o", "<|im_end|>"]


def test_messages_the_template_refuses_are_a_data_error(make_tokenizer: Make, chatml: str) -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = make_tokenizer(refuse + chatml)
    with pytest.raises(DataError, match="refuses it: no system role"):
        tokenize_example(tokenizer, chat("Hi", "No", system="S"), row=0)
    assert len(tokenize_example(tokenizer, chat("Hi", "No"), row=0).completion_ids) == 3


def test_a_generation_prompt_with_another_header_than_answers_is_a_data_error(
    make_tokenizer: Make, chatml: str
) -> None:
    tokenizer = make_tokenizer(chatml.replace("'<|im_start|>assistant\n'", "'model: '"))
    with pytest.raises(DataError, match="than its generation prompt, which ends with") as caught:
        tokenize_example(tokenizer, chat("Hi", "No"), row=0)
    assert "\n" not in str(caught.value)


def test_a_generation_prompt_that_does_not_start_this_completion_is_a_data_error(
    make_tokenizer: Make, chatml: str
) -> None:
    # Qwen3.5 opens with an empty thought, but writes an answer that has a thought with that one.
    opened = "assistant\n' + ('' if '/' in message['content'] else '()') + '"
    template = chatml.replace("message['role'] + '\n'", f"('{opened}' if message['role'] == 'assistant' else 'user\n')")
    tokenizer = make_tokenizer(template.replace("assistant\n' }}", "assistant\n()' }}"))
    assert len(tokenize_example(tokenizer, chat("Hi", "No"), row=0).completion_ids) == 3
    with pytest.raises(DataError, match="than its generation prompt, which ends with"):
        tokenize_example(tokenizer, chat("Hi", "(x/)No"), row=0)


def test_a_template_that_ends_this_completion_in_another_way_is_a_data_error(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer(chatml.replace("+ '\n' }}", "+ '\n' * (message['content'] | length % 2) }}"))
    with pytest.raises(DataError, match="ends this answer with"):
        tokenize_example(tokenizer, chat("Hi", "No"), row=0)


def test_a_template_that_drops_text_is_a_model_error(make_tokenizer: Make, chatml: str) -> None:
    # Templates of vision models loop over parts of a message and write nothing for plain text.
    tokenizer = make_tokenizer(chatml.replace("+ message['content']", ""))
    with pytest.raises(ModelError, match="leaves the answer's text out"):
        tokenize_example(tokenizer, chat("Hi", "No"), row=0)


def test_named_templates_without_a_default_are_a_model_error(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer({"tool_use": chatml})
    with pytest.raises(ModelError, match="cannot be used: This model has multiple chat templates"):
        tokenize_example(tokenizer, chat("Hi", "No"), row=0)


@pytest.mark.parametrize(
    ("name", "prompt_end", "completion"),
    [
        ("gemma3", "<start_of_turn>model\n", "No<end_of_turn>"),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n", "No<|eot_id|>"),
        ("phi3", "<|assistant|>\n", "No<|end|>"),  # and "\n<|endoftext|>" left out
        ("qwen3", "<|im_start|>assistant\n", "<think>\n\n</think>\n\nNo<|im_end|>"),
        ("qwen3_instruct_2507", "<|im_start|>assistant\n", "No<|im_end|>"),
        ("gptoss", "<|start|>assistant", "<|channel|>final<|message|>No<|return|>"),
    ],
)
def test_templates_of_real_models_give_their_own_end_of_turn(
    make_tokenizer: Make, name: str, prompt_end: str, completion: str
) -> None:
    trl = importlib.util.find_spec("trl")
    if trl is None or not trl.submodule_search_locations:
        pytest.skip("trl, which carries the templates, is not installed")
    template = Path(trl.submodule_search_locations[0], "chat_templates", f"{name}.jinja").read_text()
    ends = ["<end_of_turn>", "<|eot_id|>", "<|end|>", "<|im_end|>", "<|return|>", "<|endoftext|>"]
    tokenizer = make_tokenizer(template, eos_token="<|endoftext|>", bos_token="<|bos|>", additional_special_tokens=ends)
    example = tokenize_example(tokenizer, chat("Hi", "No"), row=0)
    assert "".join(tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist())).endswith(prompt_end)
    assert "".join(tokenizer.convert_ids_to_tokens(example.completion_ids.tolist())) == completion


def test_another_template_and_its_variables_take_the_place_of_the_tokenizers(
    tokenizer: PreTrainedTokenizerFast, chatml: str
) -> None:
    template = chatml + "{% if add_generation_prompt and mood is defined %}{{ mood }}{% endif %}"
    settings = ChatSettings(template=template, kwargs='{"mood": "!"}')
    prompt = tokenize_prompt(tokenizer, chat("Hi")[:1], settings).tolist()
    by_hand = tokenizer.apply_chat_template(
        chat("Hi")[:1], chat_template=template, mood="!", add_generation_prompt=True, return_dict=False
    )
    assert prompt == by_hand
    check_variables(tokenizer, settings)
    with pytest.raises(ConfigError, match=r"data.chat_template does not read mod; did you mean mood\?"):
        check_variables(tokenizer, ChatSettings(template=template, kwargs='{"mod": 1}'))


def test_a_template_that_prints_the_time_prints_the_date_of_the_run(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer("{{ strftime_now('%d %b %Y %H:%M:%S') + '\n' }}" + chatml)
    ids = tokenize_prompt(tokenizer, chat("Hi")[:1], ChatSettings(date="2026-01-31T12:34:56"))
    assert "".join(tokenizer.convert_ids_to_tokens(ids.tolist())).startswith("31 Jan 2026 12:34:56\n")


def test_a_prompt_without_an_answer_has_an_empty_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    example = tokenize_example(tokenizer, chat("Hi")[:1], row=0)
    assert example.prompt_ids.tolist() == tokenize_prompt(tokenizer, chat("Hi")[:1]).tolist()
    assert (len(example.completion_ids), example.has_answer) == (0, False)
