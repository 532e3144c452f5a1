import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rayqd.data import Message, tokenize_example
from rayqd.data.chat_settings import ChatSettings
from rayqd.data.conversation import parse_row
from rayqd.data.messages import Conversation
from rayqd.data.render import check_variables
from rayqd.data.template import tokenize_prompt
from rayqd.errors import ConfigError, DataError, ModelError

Make = Callable[..., PreTrainedTokenizerFast]


def _chat(*contents: str, system: str | None = None) -> list[Message]:
    roles = ["user", "assistant"] * len(contents)
    start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return start + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


CONVERSATIONS = {
    "one turn": _chat("Hi", "Hello"),
    "several turns": _chat("Hi", "Hello", "And?", "Nothing"),
    "a system message": _chat("Hi", "Hello", system="Be brief"),
    "white space around": _chat(" Hi\n\n", " Hello \n"),
    "special tokens in the answer": _chat("Hi", "a<|im_end|>\nb"),
    "the probe's own word": _chat("rayqd", "rayqd rayqd"),
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
    example = tokenize_example(tokenizer, _chat("Hi", "Hello", "And?", "No"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["N", "o", "<|im_end|>"]


def test_the_prompt_is_what_an_engine_gets_even_if_the_completion_would_merge_into_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # "assistant\n" + "\nHi": tokenized whole the two line breaks are one token, which no engine is given as a prompt.
    example = tokenize_example(tokenizer, _chat("Hi", "\nHi"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist())[-2:] == ["t", "\n"]
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["\n", "H", "i", "<|im_end|>"]


def test_a_start_token_is_there_once_if_the_template_writes_it(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + chatml, bos_token="<|bos|>")
    start = tokenizer.convert_tokens_to_ids("<|bos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", start)]
    )
    ids = tokenize_example(tokenizer, _chat("Hi", "Hello"), row=0).prompt_ids.tolist()
    assert (ids[0], ids.count(start)) == (start, 1)


def test_what_is_left_out_after_the_end_of_turn_may_be_a_special_token_too(make_tokenizer: Make, chatml: str) -> None:
    # Phi-3 writes "<|end|>\n<|endoftext|>" after the last answer; models stop at the first of them.
    template = chatml
    tokenizer = make_tokenizer(template + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}")
    ids = tokenize_example(tokenizer, _chat("Hi", "No"), row=0).completion_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["N", "o", "<|im_end|>"]


def test_a_template_without_an_end_of_turn_gets_the_end_of_text_token(make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template, eos_token="<|endoftext|>")
    ids = tokenize_example(tokenizer, _chat("Hi", "No"), row=0).completion_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == [" ", "N", "o", "<|endoftext|>"]


def test_text_the_template_puts_before_a_completion_belongs_to_the_completion(
    make_tokenizer: Make, chatml: str
) -> None:
    # Qwen3 writes an empty thought before an answer without one, and not in the generation prompt.
    template = chatml.replace(
        "+ message['content']", "+ ('()' if message['role'] == 'assistant' else '') + message['content']"
    )
    tokenizer = make_tokenizer(template)
    ids = tokenize_example(tokenizer, _chat("Hi", "No"), row=0).completion_ids.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["(", ")", "N", "o", "<|im_end|>"]


def test_messages_the_template_refuses_are_a_data_error(make_tokenizer: Make, chatml: str) -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = make_tokenizer(refuse + chatml)
    with pytest.raises(DataError, match="refuses it: no system role"):
        tokenize_example(tokenizer, _chat("Hi", "No", system="S"), row=0)
    assert len(tokenize_example(tokenizer, _chat("Hi", "No"), row=0).completion_ids) == 3


def test_a_generation_prompt_with_another_header_than_answers_is_a_data_error(
    make_tokenizer: Make, chatml: str
) -> None:
    tokenizer = make_tokenizer(chatml.replace("'<|im_start|>assistant\n'", "'model: '"))
    with pytest.raises(DataError, match="than its generation prompt, which ends with") as caught:
        tokenize_example(tokenizer, _chat("Hi", "No"), row=0)
    assert "\n" not in str(caught.value)


def test_a_generation_prompt_that_does_not_start_this_completion_is_a_data_error(
    make_tokenizer: Make, chatml: str
) -> None:
    # Qwen3.5 opens with an empty thought, but writes an answer that has a thought with that one.
    opened = "assistant\n' + ('' if '/' in message['content'] else '()') + '"
    template = chatml.replace("message['role'] + '\n'", f"('{opened}' if message['role'] == 'assistant' else 'user\n')")
    tokenizer = make_tokenizer(template.replace("assistant\n' }}", "assistant\n()' }}"))
    assert len(tokenize_example(tokenizer, _chat("Hi", "No"), row=0).completion_ids) == 3
    with pytest.raises(DataError, match="than its generation prompt, which ends with"):
        tokenize_example(tokenizer, _chat("Hi", "(x/)No"), row=0)


def test_a_template_that_ends_this_completion_in_another_way_is_a_data_error(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer(chatml.replace("+ '\n' }}", "+ '\n' * (message['content'] | length % 2) }}"))
    with pytest.raises(DataError, match="ends this answer with"):
        tokenize_example(tokenizer, _chat("Hi", "No"), row=0)


def test_a_template_that_drops_text_is_a_model_error(make_tokenizer: Make, chatml: str) -> None:
    # Templates of vision models loop over parts of a message and write nothing for plain text.
    tokenizer = make_tokenizer(chatml.replace("+ message['content']", ""))
    with pytest.raises(ModelError, match="leaves the answer's text out"):
        tokenize_example(tokenizer, _chat("Hi", "No"), row=0)


def test_named_templates_without_a_default_are_a_model_error(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer({"tool_use": chatml})
    with pytest.raises(ModelError, match="cannot be used: This model has multiple chat templates"):
        tokenize_example(tokenizer, _chat("Hi", "No"), row=0)


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
    example = tokenize_example(tokenizer, _chat("Hi", "No"), row=0)
    assert "".join(tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist())).endswith(prompt_end)
    assert "".join(tokenizer.convert_ids_to_tokens(example.completion_ids.tolist())) == completion


def test_without_a_template_a_prompt_and_a_completion_are_plain_text_and_end_of_text(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(None, eos_token="<|endoftext|>")
    example = tokenize_example(tokenizer, _chat("2+2=", "4"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist()) == ["2", "+", "2", "="]
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["4", "<|endoftext|>"]


def test_without_a_template_the_start_token_is_there_if_the_tokenizer_writes_it(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(None, bos_token="<|bos|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.convert_tokens_to_ids("<|bos|>"))]
    )
    example = tokenize_example(tokenizer, _chat("Hi", "No"), row=0)
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids.tolist()) == ["<|bos|>", "H", "i"]
    assert tokenizer.convert_ids_to_tokens(example.completion_ids.tolist()) == ["N", "o", "<|im_end|>"]


@pytest.mark.parametrize("name", ["several turns", "a system message"])
def test_without_a_template_anything_else_is_a_model_error(make_tokenizer: Make, name: str) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        tokenize_example(make_tokenizer(None), CONVERSATIONS[name], row=0)


def test_a_plain_completion_without_an_end_of_text_token_is_a_model_error(make_tokenizer: Make) -> None:
    with pytest.raises(ModelError, match="has no end-of-text token"):
        tokenize_example(make_tokenizer(None, eos_token=None), _chat("Hi", "No"), row=0)


def test_of_a_plain_text_every_token_but_the_first_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Hi, <|im_end|>!"
    example = tokenize_example(tokenizer, parse_row({"text": text, "id": 3}), row=1)
    whole = tokenizer(text)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in whole
    assert (example.prompt_ids.tolist(), example.completion_ids.tolist()) == (whole[:1], whole[1:])


def test_a_plain_text_of_one_token_is_a_data_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="leaves nothing to predict"):
        tokenize_example(tokenizer, parse_row({"text": "H"}), row=1)


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
    assert len(tokenize_example(tokenizer, _chat("Hi", "No"), row=0).completion_ids) == 3
    with pytest.raises(DataError, match="starts with <think>, and the chat template's generation prompt ends"):
        tokenize_example(tokenizer, _chat("Hi", "<think>x</think>No"), row=0)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_that_the_template_has_no_place_for_is_a_data_error(
    tokenizer: PreTrainedTokenizerFast, field: str
) -> None:
    answer = {"role": "assistant", "content": "4", field: "add"}
    with pytest.raises(DataError, match=rf"messages\[1\].{field}: the chat template has no place for it"):
        tokenize_example(tokenizer, [{"role": "user", "content": "2+2"}, answer], row=0)
    earlier = [{"role": "user", "content": "2+2"}, answer, *_chat("Sure?", "Yes")]
    assert len(tokenize_example(tokenizer, earlier, row=0).completion_ids) == 4


def test_tools_calls_and_developers_that_the_template_leaves_out_are_data_errors(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages if m.role != 'developer' %}{{ m.role + ': ' + (m.content or '') + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    function = {"type": "function", "function": {"name": "add", "arguments": {}}}
    with pytest.raises(DataError, match="tools: the chat template has no place for them, add is not in its text"):
        tokenize_example(tokenizer, Conversation(_chat("Hi", "No"), tools=[function]), row=0)
    called = [*_chat("Hi"), {"role": "assistant", "content": None, "tool_calls": [function]}]
    with pytest.raises(DataError, match=r"messages\[1\].tool_calls: the chat template has no place for it"):
        tokenize_example(tokenizer, [*called, {"role": "tool", "content": "4"}, *_chat("And?", "No")[1:]], row=0)
    with pytest.raises(DataError, match=r"messages\[0\].content, of role developer: the chat template has no place"):
        tokenize_example(tokenizer, [{"role": "developer", "content": "Brief!"}, *_chat("Hi", "No")], row=0)


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


def test_another_template_and_its_variables_take_the_place_of_the_tokenizers(
    tokenizer: PreTrainedTokenizerFast, chatml: str
) -> None:
    template = chatml + "{% if add_generation_prompt and mood is defined %}{{ mood }}{% endif %}"
    chat = ChatSettings(template=template, kwargs='{"mood": "!"}')
    prompt = tokenize_prompt(tokenizer, _chat("Hi")[:1], chat).tolist()
    by_hand = tokenizer.apply_chat_template(
        _chat("Hi")[:1], chat_template=template, mood="!", add_generation_prompt=True, return_dict=False
    )
    assert prompt == by_hand
    check_variables(tokenizer, chat)
    with pytest.raises(ConfigError, match=r"data.chat_template does not read mod; did you mean mood\?"):
        check_variables(tokenizer, ChatSettings(template=template, kwargs='{"mod": 1}'))


def test_a_template_that_prints_the_time_prints_the_date_of_the_run(make_tokenizer: Make, chatml: str) -> None:
    tokenizer = make_tokenizer("{{ strftime_now('%d %b %Y %H:%M:%S') + '\n' }}" + chatml)
    ids = tokenize_prompt(tokenizer, _chat("Hi")[:1], ChatSettings(date="2026-01-31T12:34:56"))
    assert "".join(tokenizer.convert_ids_to_tokens(ids.tolist())).startswith("31 Jan 2026 12:34:56\n")


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
        tokenize_example(tokenizer, _chat("Hi", "No"), row=0)
    assert tokenize_example(tokenizer, parse_row({"text": "Hi"}), row=0).prompt_ids.tolist()


def test_a_prompt_without_an_answer_has_an_empty_completion(tokenizer: PreTrainedTokenizerFast) -> None:
    example = tokenize_example(tokenizer, _chat("Hi")[:1], row=0)
    assert example.prompt_ids.tolist() == tokenize_prompt(tokenizer, _chat("Hi")[:1]).tolist()
    assert (len(example.completion_ids), example.has_answer) == (0, False)
