"""SentencePiece tokenizers in a GGUF file: what llama.cpp does with the scores, done anew, gives transformers' ids."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from sentencepiece_tokenizers import sentencepiece_tokenizer
from small_models import small_model, taken_apart

from rayqd.config.sections import QuantConfig
from rayqd.errors import ModelError
from rayqd.export.gguf import FILE_NAME, write_gguf
from rayqd.export.gguf_tokenizer import add_tokenizer

TEXTS = ["the other thing", "hello  there, all other in the", "thither", "Grüße an the Welt", " in", "ththe erother"]


def merge_by_score(text: str, scores: dict[str, float], ids: dict[str, int]) -> list[int]:
    """llm_tokenizer_spm of llama.cpp: of neighbours whose whole is a token the highest score, the leftmost first."""
    symbols = list(text)
    while True:
        wholes = [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ids]
        if not wholes:
            break
        place = -max(wholes)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


@pytest.mark.parametrize("adds_space", [True, False])
def test_scores_of_the_file_merge_text_as_transformers_does(tmp_path: Path, adds_space: bool) -> None:
    tokenizer = sentencepiece_tokenizer(adds_space=adds_space)
    model = small_model("llama", tied=True, vocab_size=320)
    write_gguf(taken_apart(model, QuantConfig(group_size=32), tokenizer=tokenizer), tmp_path / "export")
    said = {name: f.contents() for name, f in gguf.GGUFReader(tmp_path / "export" / FILE_NAME).fields.items()}
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.add_space_prefix"]) == ("llama", adds_space)
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert types[:4] == [2, 3, 3, 6]  # unknown, control, control, byte
    scores, ids = dict(zip(tokens, said["tokenizer.ggml.scores"], strict=True)), {t: i for i, t in enumerate(tokens)}
    for text in TEXTS:
        whole = ("▁" if adds_space else "") + text.replace(" ", "▁")
        assert merge_by_score(whole, scores, ids) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def without_a_merge(described: dict[str, Any]) -> None:
    described["model"]["merges"].remove(["t", "he"])


def out_of_order(described: dict[str, Any]) -> None:
    merges = described["model"]["merges"]
    merges.append(merges.pop(merges.index(["t", "he"])))


def lowercased(described: dict[str, Any]) -> None:
    described["normalizer"] = {"type": "Lowercase"}


def split_at_digits(described: dict[str, Any]) -> None:
    described["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_merge, "'t' and 'he' are no merge"),
        (out_of_order, "the merges of 'the' do not stand together"),
        (lowercased, "its normalizer Lowercase"),
        (split_at_digits, "its pre-tokenizer Digits"),
    ],
)
def test_tokenizer_that_scores_do_not_describe_is_refused(change: Any, message: str) -> None:
    tokenizer = sentencepiece_tokenizer()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    change(described)

    class Changed:
        backend_tokenizer = type("Backend", (), {"to_str": staticmethod(lambda: json.dumps(described))})

    model = small_model("llama", tied=True, vocab_size=320)
    with pytest.raises(ModelError, match=f"SentencePiece's that GGUF export does not know: {message}"):
        add_tokenizer(gguf.GGUFWriter(None, "llama"), Changed(), model.config)
