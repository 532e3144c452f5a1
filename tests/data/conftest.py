from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def make_tokenizer(chat_template: str | None = CHATML, **changes: Any) -> PreTrainedTokenizerFast:
    """A token for each character, except that two line breaks are one token, as in a byte-pair vocabulary."""
    characters = [chr(code) for code in range(32, 127)] + ["\n", "\n\n", "\u2028"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *SPECIAL, *characters])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{"unk_token": "<unk>", "eos_token": "<|im_end|>", "additional_special_tokens": SPECIAL} | changes,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(scope="session")
def chatml() -> str:
    return CHATML


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session", name="make_tokenizer")
def make_tokenizer_fixture() -> Any:
    return make_tokenizer
