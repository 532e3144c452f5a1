"""One conversation as tokens: the prompt as an engine would get it, and the completion up to its end-of-turn token.

A completion that was cut has no end-of-turn token.

<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|> | \\n
prompt_ids                                              | completion_ids  | left out: nobody generates it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rayqd.data.conversation import CUT, FINISH_REASON, TEXT, Message
from rayqd.errors import DataError, ModelError
from rayqd.types import Example, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "rayqd"


def tokenize_example(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], row: int) -> Example:
    """Tokenize all but the last message as the prompt, generation prompt included, and the last one as the completion.

    Of a plain text all but the first token is completion; special tokens in it are read as such. A tokenizer without a
    chat template takes one prompt and one completion as plain text, with its end-of-text token.
    Raises DataError, without a location, if the template cannot write these messages; ModelError if it can write none.
    """
    if messages[0]["role"] == TEXT:
        return _plain_text(tokenizer, messages[0]["content"], row)
    is_cut = messages[-1].get(FINISH_REASON) == CUT
    messages = [{"role": message["role"], "content": message["content"]} for message in messages]
    if tokenizer.chat_template is None:
        prompt, completion, end = _render_plain(tokenizer, messages)
    else:
        prompt, completion, end = _render_chat(tokenizer, messages)
    prompt_ids, completion_ids = _split_ids(tokenizer, prompt, completion if is_cut else completion + end)
    return Example(
        row=row,
        prompt_ids=np.asarray(prompt_ids, dtype=np.int32),
        completion_ids=np.asarray(completion_ids, dtype=np.int32),
    )


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> IntArray:
    """Return [P], the prompt that `tokenize_example` makes of these messages and a completion.

    Raises DataError and ModelError as it does.
    """
    if tokenizer.chat_template is None:
        prompt, _, _ = _render_plain(tokenizer, [*messages, {"role": "assistant", "content": PROBE}])
    else:
        prompt = _apply_template(tokenizer, messages, add_generation_prompt=True)
    return np.asarray(_ids(tokenizer, prompt), dtype=np.int32)


def _plain_text(tokenizer: PreTrainedTokenizerBase, text: str, row: int) -> Example:
    ids = np.asarray(_ids(tokenizer, text, special=True), dtype=np.int32)
    if len(ids) < 2:
        raise DataError("text is a single token, which leaves nothing to predict")
    return Example(row=row, prompt_ids=ids[:1], completion_ids=ids[1:])


def _render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str, str]:
    """Return the text of the prompt, of the completion, and of its end up to the template's end-of-turn token."""
    end, tail = _find_turn_end(tokenizer)
    prompt, completion = _render_prompt_and_completion(tokenizer, messages)
    if not completion.endswith(tail):
        raise DataError(f"the chat template ends this answer with {completion[-40:]!r} and others with {tail!r}")
    return prompt, completion.removesuffix(tail), end


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that every completion ends with unless it was cut; its last token ends the turn."""
    return _eos_token(tokenizer) if tokenizer.chat_template is None else _find_turn_end(tokenizer)[0]


def _find_turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the end-of-turn token with what stands before it, and all that the template writes after a completion.

    Rendered from a completion that is known, because one of the data may hold special tokens itself. The end of turn is
    the first special token after it; a template that has none there gets the end-of-text token.
    """
    probe = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    try:
        _, completion = _render_prompt_and_completion(tokenizer, probe)
        if PROBE not in completion:
            raise DataError("the chat template leaves the answer's text out")
    except DataError as error:
        raise ModelError(
            f"{_name(tokenizer)} cannot be given a question and an answer: {error}; give it another chat template"
        ) from error
    tail = completion.rpartition(PROBE)[2]
    candidates = [(tail.find(token), -len(token), token) for token in _special_tokens(tokenizer) if token in tail]
    if not candidates:
        return _eos_token(tokenizer), tail
    start, _, token = min(candidates)
    return tail[: start + len(token)], tail


def _render_prompt_and_completion(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str]:
    prompt = _apply_template(tokenizer, messages[:-1], add_generation_prompt=True)
    conversation = _apply_template(tokenizer, messages, add_generation_prompt=False)
    if not conversation.startswith(prompt):
        raise DataError(
            "the chat template writes the answer after other text than its generation prompt, "
            f"which ends with {prompt[-40:]!r}"
        )
    return prompt, conversation[len(prompt) :]


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
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
    """Tokenize the prompt as it stands alone, which is how an engine meets it, and what follows.

    The two are the tokens of both together wherever those have a boundary there. Where they have none (a completion
    that starts with the line break that the prompt ends with), the completion is tokenized by itself. It is not
    always, because some tokenizers put a space before whatever they are given.
    """
    prompt_ids = _ids(tokenizer, prompt)
    both = _ids(tokenizer, prompt + completion)
    if both[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, both[len(prompt_ids) :]
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
