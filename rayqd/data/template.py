"""One conversation as tokens: the prompt as an engine would get it, and the answer up to its end-of-turn token.

An answer that was cut has no end-of-turn token.

<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|> | \\n
prompt_ids                                              | completion_ids  | left out: nobody generates it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rayqd.data.sources import CUT, FINISH_REASON, TEXT, Message
from rayqd.errors import DataError, ModelError
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "rayqd"


def tokenize_example(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], row: int) -> Example:
    """All but the last message as the prompt, generation prompt included, and the last one as the completion.

    Of a plain text all but the first token is completion; special tokens in it are read as such. A tokenizer without a
    chat template takes one question and one answer as plain text, with its end-of-text token.
    Raises DataError, without a place, if the template cannot write these messages; ModelError if it can write none.
    """
    if messages[0]["role"] == TEXT:
        return _plain_text(tokenizer, messages[0]["content"], row)
    is_cut = messages[-1].get(FINISH_REASON) == CUT
    messages = [{"role": message["role"], "content": message["content"]} for message in messages]
    if tokenizer.chat_template is None:
        prompt, answer, end = _render_plain(tokenizer, messages)
    else:
        prompt, answer, end = _render_chat(tokenizer, messages)
    prompt_ids, completion_ids = _split_ids(tokenizer, prompt, answer if is_cut else answer + end)
    return Example(
        row=row,
        prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
        completion_ids=np.asarray(completion_ids, dtype=np.int32),
    )


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> IntArray:
    """[P] the prompt that `tokenize_example` makes of these messages and an answer.

    Raises DataError and ModelError as it does.
    """
    if tokenizer.chat_template is None:
        prompt, _, _ = _render_plain(tokenizer, [*messages, {"role": "assistant", "content": PROBE}])
    else:
        prompt = _apply(tokenizer, messages, add_generation_prompt=True)
    return np.asarray(_ids(tokenizer, prompt), dtype=np.int32)


def _plain_text(tokenizer: PreTrainedTokenizerBase, text: str, row: int) -> Example:
    ids = np.asarray(_ids(tokenizer, text, special=True), dtype=np.int32)
    if len(ids) < 2:
        raise DataError("text is a single token, which leaves nothing to predict")
    return Example(row=row, prompt_ids=ids[:1], completion_ids=ids[1:])


def _render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str, str]:
    """Text of the prompt, of the answer, and of its end up to the template's end-of-turn token."""
    end_of_turn, tail = _turn_end(tokenizer)
    prompt, answer = _prompt_and_answer(tokenizer, messages)
    if not answer.endswith(tail):
        raise DataError(f"the chat template ends this answer with {answer[-40:]!r} and others with {tail!r}")
    return prompt, answer.removesuffix(tail), end_of_turn


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What every answer that was not cut ends with; its last token is the one that ends the turn."""
    return _eos_token(tokenizer) if tokenizer.chat_template is None else _turn_end(tokenizer)[0]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The end-of-turn token with what stands before it, and all that the template writes after an answer.

    Found on an answer that is known, because an answer of the data may hold special tokens itself. The end of turn is
    the first special token after it; a template that has none there gets the end-of-text token.
    """
    probe = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    try:
        _, answer = _prompt_and_answer(tokenizer, probe)
        if PROBE not in answer:
            raise DataError("the chat template leaves the answer's text out")
    except DataError as error:
        raise ModelError(
            f"{_name(tokenizer)} cannot be given a question and an answer: {error}; give it another chat template"
        ) from error
    tail = answer.rpartition(PROBE)[2]
    found = [(tail.find(token), -len(token), token) for token in _special_tokens(tokenizer) if token in tail]
    if not found:
        return _eos_token(tokenizer), tail
    start, _, token = min(found)
    return tail[: start + len(token)], tail


def _prompt_and_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str]:
    prompt = _apply(tokenizer, messages[:-1], add_generation_prompt=True)
    whole = _apply(tokenizer, messages, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise DataError(
            "the chat template writes the answer after other text than its generation prompt, "
            f"which ends with {prompt[-40:]!r}"
        )
    return prompt, whole[len(prompt) :]


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise DataError(f"the chat template refuses it: {error}") from error
    except ValueError as error:  # several templates, none of them the default
        raise ModelError(f"the chat templates of {_name(tokenizer)} cannot be used: {error}") from error
    return cast(str, text)


def _render_plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str, str]:
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise ModelError(
            f"{_name(tokenizer)} has no chat template, so it takes rows of one prompt and one completion; "
            "use such rows, or a model with a chat template"
        )
    start = tokenizer.bos_token if _starts_with_bos(tokenizer) else ""
    return f"{start}{messages[0]['content']}", messages[1]["content"], _eos_token(tokenizer)


def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and _ids(tokenizer, "", special=True)[:1] == [tokenizer.bos_token_id]


def _split_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt as it stands alone, which is how an engine meets it, and of what follows.

    The two are the tokens of the whole wherever that has a boundary there. Where it has none (an answer that starts
    with the line break that the prompt ends with), the completion is tokenized by itself. It is not always, because
    some tokenizers put a space before whatever they are given.
    """
    prompt_ids = _ids(tokenizer, prompt)
    whole = _ids(tokenizer, prompt + completion)
    if whole[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole[len(prompt_ids) :]
    return prompt_ids, _ids(tokenizer, completion)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    return cast(Any, tokenizer(text, add_special_tokens=special, verbose=False))["input_ids"]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _eos_token(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise ModelError(f"{_name(tokenizer)} has no end-of-text token (eos_token), so a completion could not end")
    return cast(str, tokenizer.eos_token)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "the tokenizer"
