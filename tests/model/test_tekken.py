"""A tokenizer of a tekken.json, made anew, beside mistral-common's own tokens."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, MistralConfig

from rayqd.data.messages import Conversation
from rayqd.data.stops import end_token_ids
from rayqd.data.template import tokenize_example
from rayqd.errors import ModelError
from rayqd.model import tekken
from rayqd.model.load import load_tokenizer

pytest.importorskip("mistral_common")

SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
)  # fmt: skip
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ASKED = [{"role": "user", "content": "What is 12 of the 30?"}]
TURNS = [*ASKED, {"role": "assistant", "content": "It is the 40 %."}, {"role": "user", "content": "And\n the other?"}]
WITH_SYSTEM = [{"role": "system", "content": "Say it in short."}, *TURNS]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model of Mistral's with every byte as a token, and a few merges."""
    pieces = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"is", b" is", b"er"]
    vocab = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    config = {
        "pattern": PATTERN, "num_vocab_tokens": len(pieces), "default_vocab_size": len(pieces) + len(SPECIAL),
        "default_num_special_tokens": len(SPECIAL), "version": "v3",
    }  # fmt: skip
    special = [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(SPECIAL)]
    content = {"config": config, "vocab": vocab, "special_tokens": special}
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    MistralConfig(vocab_size=len(pieces) + len(SPECIAL), hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("messages", [ASKED, TURNS, WITH_SYSTEM])
def test_prompts_are_those_of_mistral_common(checkpoint: Path, messages: list[Any]) -> None:
    tokenizer, theirs = load_tokenizer(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert type(theirs).__name__ == "MistralCommonBackend"
    answer = {"role": "assistant", "content": "No."}
    example = tokenize_example(tokenizer, Conversation([*messages, answer]), 0)
    assert example.prompt_ids.tolist() == theirs.apply_chat_template(messages, return_dict=False)
    end = SPECIAL.index("</s>")
    assert example.completion_ids.tolist() == [*theirs.encode("No.", add_special_tokens=False), end]
    assert end in end_token_ids(tokenizer, checkpoint)


def test_it_travels_to_other_processes(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.apply_chat_template(TURNS, return_dict=False) == tokenizer.apply_chat_template(
        TURNS, return_dict=False
    )


def test_a_conversion_that_gives_other_tokens_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    integration = pytest.importorskip("transformers.integrations.mistral.tokenizer")
    right = integration.convert_tekken_tokenizer
    monkeypatch.setattr(integration, "convert_tekken_tokenizer", lambda file: right(file, "{{ bos_token }}[INST]"))
    with pytest.raises(ModelError, match=f"{tekken.TEKKEN} gives other tokens once .* give the model a tokenizer.json"):
        load_tokenizer(checkpoint)
