"""A given model in a GGUF file: which one is meant, and whether its tokens are the teacher's."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType

from rayqd.commands.given_models import check_given_model, find_given_model
from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.model.load import load_tokenizer


@pytest.fixture
def tokens(tiny_model: Path) -> list[str]:
    vocabulary = load_tokenizer(tiny_model).get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    return tmp_path / "theirs"


@pytest.fixture
def check(directory: Path, tiny_config: Callable[..., Config]) -> Callable[[], None]:
    """A function that checks the model in the directory, as before anything starts."""

    def run() -> None:
        find_given_model.cache_clear()
        check_given_model(find_given_model(str(directory)), tiny_config(data={"max_length": 128}))

    return run


def write(
    file: Path,
    tokens: Sequence[str],
    *,
    kinds: dict[int, TokenType] | None = None,
    num_rows: int | None = None,
    takes: int = 128,
    architecture: str = "llama",
) -> None:
    """Write a model of no layers."""
    writer = GGUFWriter(file, architecture)
    writer.add_name("theirs")
    writer.add_block_count(0)
    writer.add_context_length(takes)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(tokens))
    writer.add_token_types([(kinds or {}).get(i, TokenType.NORMAL) for i in range(len(tokens))])
    writer.add_tensor("token_embd.weight", np.zeros((num_rows or len(tokens), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_one_file_with_the_teachers_tokens_is_taken(
    directory: Path, check: Callable[[], None], tokens: list[str]
) -> None:
    write(directory / "q4.gguf", tokens)
    check()


def test_padding_and_rewritten_spaces_of_added_tokens_are_no_difference(
    directory: Path, check: Callable[[], None], tokens: list[str]
) -> None:
    padded = [*tokens, f"[PAD{len(tokens)}]", "<dummy00001>", "<unused>"]
    padded[1] = f" {tokens[1]} "
    write(directory / "q4.gguf", padded, kinds={1: TokenType.CONTROL, len(padded) - 1: TokenType.UNUSED})
    check()


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (lambda t: [*t[:5], t[6], t[5], *t[7:]], r"\(99 and 99 tokens, 2 ids differ: 5 is '\S' here and '\S' there"),
        (lambda t: t[:-2], r"\(99 and 97 tokens, 2 ids differ: 97 is \S+ here and None there"),
        (lambda t: [*t, "<|tool|>"], r"\(99 and 100 tokens, 1 ids differ: 99 is None here and '<\|tool\|>' there"),
        (lambda t: [f" {t[0]}", *t[1:]], r"\(99 and 99 tokens, 1 ids differ: 0 is '<unk>' here and ' <unk>' there"),
    ],
)
def test_other_tokens_are_refused_with_an_example(
    change: Callable[[list[str]], list[str]],
    differ: str,
    directory: Path,
    check: Callable[[], None],
    tokens: list[str],
) -> None:
    write(directory / "q4.gguf", change(tokens))
    with pytest.raises(ModelError, match=f"have different tokenizers {differ}"):
        check()


def test_more_than_one_model_in_a_directory_is_refused(
    directory: Path, check: Callable[[], None], tokens: list[str], tiny_model: Path
) -> None:
    write(directory / "q4.gguf", tokens)
    write(directory / "q8.gguf", tokens)
    with pytest.raises(ModelError, match=r"theirs has q4\.gguf and q8\.gguf, of which only one can be measured: give"):
        check()
    (directory / "q8.gguf").unlink()
    shutil.copytree(tiny_model, directory, dirs_exist_ok=True)
    with pytest.raises(ModelError, match=r"theirs has q4\.gguf and model\.safetensors, of which only one"):
        check()


def test_what_it_cannot_be_measured_with_is_said_before_anything_starts(
    directory: Path, check: Callable[[], None], tokens: list[str]
) -> None:
    file = directory / "q4.gguf"
    write(file, tokens, num_rows=90)
    with pytest.raises(ModelError, match=r"an output head of 90 ids, and the tokenizer of .* has 99 tokens"):
        check()
    write(file, tokens, takes=64)
    with pytest.raises(ModelError, match="takes 64 tokens, and held-out rows may have 128"):
        check()
    write(file, tokens, architecture="rwkv9")
    with pytest.raises(
        ModelError, match=r"q4\.gguf cannot be loaded here \(ValueError: .*rwkv9.*\): write the model as"
    ):
        check()
    write(file, tokens)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"q4\.gguf cannot be loaded here \(\w+: "):
        check()
