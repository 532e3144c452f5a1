"""Token ids are those that `tokenizer.apply_chat_template` gives by hand, for templates of eight families."""

from datetime import datetime
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from rayqd.data.chat_settings import ChatSettings
from rayqd.data.messages import Conversation
from rayqd.data.stops import end_token_ids
from rayqd.data.template import tokenize_example, tokenize_prompt
from rayqd.errors import DataError
from tests.data.families import CONVERSATIONS, DATE, FAMILIES, tokenizer_of, tools_of, user

CHAT = ChatSettings(date=DATE)
CASES = [(family, name) for family in FAMILIES for name in CONVERSATIONS]


def by_hand(tokenizer: Any, messages: Any, tools: Any = None, **changes: Any) -> list[int]:
    given = {"strftime_now": datetime.fromisoformat(DATE).strftime, **changes}
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False, **given)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_prompt_is_the_template_by_hand_and_the_completion_what_it_writes_next(family: str, name: str) -> None:
    tokenizer, messages, tools = tokenizer_of(family), CONVERSATIONS[name], tools_of(name)
    if name in FAMILIES[family].refuses:
        with pytest.raises(DataError, match=r"the chat template (refuses it|has no place)"):
            tokenize_example(tokenizer, Conversation(messages, tools=tools), 0, CHAT)
        return
    example = tokenize_example(tokenizer, Conversation(messages, tools=tools), 0, CHAT)
    prompt = by_hand(tokenizer, messages[:-1], tools, add_generation_prompt=True)
    assert example.prompt_ids.tolist() == prompt
    assert tokenize_prompt(tokenizer, Conversation(messages[:-1], tools=tools), CHAT).tolist() == prompt
    end = FAMILIES[family].end_of_call if name == "call" else FAMILIES[family].end
    assert tokenizer.convert_ids_to_tokens(int(example.completion_ids[-1])) == end
    whole = by_hand(tokenizer, messages, tools)
    if family == "deepseek_r1":  # the prompt has opened a thought, which no conversation has
        opened = tokenizer("<think>\n", add_special_tokens=False)["input_ids"]
        assert prompt[-len(opened) :] == opened
        prompt = prompt[: -len(opened)]
    assert [*prompt, *example.completion_ids.tolist()] == whole[: len(prompt) + len(example.completion_ids)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_may_end_at_the_end_of_an_answer_and_of_a_call(family: str, tmp_path: Any) -> None:
    LlamaConfig(eos_token_id=None).save_pretrained(tmp_path)
    tokenizer = tokenizer_of(family)
    ends = {FAMILIES[family].end, FAMILIES[family].eos, *filter(None, [FAMILIES[family].end_of_call])}
    assert set(tokenizer.convert_ids_to_tokens(list(end_token_ids(tokenizer, tmp_path, CHAT)))) == ends


def trained_text(tokenizer: Any, example: Any) -> list[str]:
    """The runs of tokens that are trained on, decoded."""
    ids = np.concatenate([example.prompt_ids, example.completion_ids])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], example.trained, [False]]).astype(int)))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return ["".join(tokenizer.convert_ids_to_tokens(ids[a:b].tolist())) for a, b in runs]


ALL = ChatSettings(date=DATE, train_on="all")


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_assistants_turns_are_trained_with_their_ends_and_nothing_else(family: str) -> None:
    tokenizer, end = tokenizer_of(family), FAMILIES[family].end
    example = tokenize_example(tokenizer, CONVERSATIONS["three turns"], 0, ALL)
    expected = [f"A.{end}", f"B.{end}", f"C.{end}"]
    if family == "qwen3":  # the last one has the thought that its template writes before it
        expected[-1] = f"<think>\n\n</think>\n\nC.{end}"
    if family == "harmony":  # an answer begins with its channel, and an earlier one ends as none is generated
        expected = [f"<|channel|>final<|message|>{text}" for text in ("A.", "B.", f"C.{end}")]
    assert trained_text(tokenizer, example) == expected
    last = tokenize_example(tokenizer, CONVERSATIONS["three turns"], 0, CHAT)
    assert example.prompt_ids.tolist() == last.prompt_ids.tolist()
    assert (example.completion_ids.tolist(), last.trained) == (last.completion_ids.tolist(), None)


def test_turns_that_the_template_rewrites_later_are_found_as_they_stand_in_the_prompt() -> None:
    tokenizer = tokenizer_of("qwen3")
    messages = [
        user("a"),
        {"role": "assistant", "content": "<think>hmm</think>\nA"},
        user("b"),
        {"role": "assistant", "content": "<think>ok</think>\nB"},
    ]
    example = tokenize_example(tokenizer, messages, 0, ALL)
    assert trained_text(tokenizer, example) == ["A<|im_end|>", "<think>\nok\n</think>\n\nB<|im_end|>"]


def test_a_thought_between_calls_is_trained_where_the_template_keeps_it() -> None:
    tokenizer = tokenizer_of("qwen3")
    call = {**CONVERSATIONS["call"][-1], "reasoning_content": "add them"}
    messages = [user("2+2?"), call, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}]
    example = tokenize_example(tokenizer, Conversation(messages, tools=tools_of("call")), 0, ALL)
    first, second = trained_text(tokenizer, example)
    assert first.startswith("<think>\nadd them\n</think>\n\n\n<tool_call>\n")
    assert first.endswith("</tool_call><|im_end|>")
    assert second.endswith("4<|im_end|>")


def test_an_earlier_answer_of_weight_0_is_not_trained_on() -> None:
    tokenizer = tokenizer_of("qwen25")
    conversation = Conversation(CONVERSATIONS["three turns"], untrained=[1])
    example = tokenize_example(tokenizer, conversation, 0, ALL)
    assert trained_text(tokenizer, example) == ["B.<|im_end|>", "C.<|im_end|>"]
