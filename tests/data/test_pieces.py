"""Tokens put together from those of pieces are the tokenizer's own, by every way of cutting text that models have."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rayqd.data import fast_tokenizer
from rayqd.data.fast_tokenizer import FastTokenizer, tokenize_fast
from rayqd.data.pieces import NotUnderstoodError, Pieces

CORPUS = ["The cat's 3 mats aren't 1234 here.\n\nIt is, I'LL say: <ok> ça va? 漢字 и ещё.  def f(x):\n    return x"] * 4
WORDS = [
    *("The", " cat", "'s", "'LL", " 12345", "\n\n", "  ", " \n", "...", "\t", "_a", "A1b", "\x1c", "e\u0301"),
    *("é", "漢字", " и", "😀", "٣", "\u00a0", "\u2028", "\x85", "\u200d", "ſ", "²", "ﬁ", "क्षि", "İ", "\ufeff"),
    *("\u1112\u1161", "\U0001fae8", "<|end|>", "<|end", "<|end|><tool>", "<tool>s"),
]

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
)


def _split(*expressions: str) -> Any:
    cuts = [pre_tokenizers.Split(Regex(text), "isolated") for text in expressions]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_level() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


CUTS: dict[str, Callable[[], Any]] = {
    "gpt2": _byte_level,
    "smollm2": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()]),
    "llama3": lambda: _split(LLAMA),
    "qwen2": lambda: _split(QWEN),
    "o200k": lambda: _split(O200K),
    "deepseek_v3": lambda: _split(*DEEPSEEK),
}


def make(cut: Any, normalizer: Any = None, added: tuple[AddedToken, ...] = (), **model: Any) -> Any:
    core = Tokenizer(models.BPE(**model))
    core.pre_tokenizer = cut
    if normalizer is not None:
        core.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    core.add_special_tokens([AddedToken("<|end|>", normalized=False), AddedToken("<|end|><tool>", normalized=False)])
    core.add_tokens([AddedToken("<tool>", normalized=True), *added])
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.mark.slow
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
@pytest.mark.parametrize("name", CUTS)
def test_the_tokens_of_pieces_are_the_tokenizers(name: str, normalizer: Any) -> None:
    draw = random.Random(name)
    texts = ["".join(draw.choices(WORDS, k=draw.randint(0, 12))) for _ in range(2000)]
    texts += ["".join(draw.choices([word for word in WORDS if word.isascii()], k=20)) for _ in range(500)]
    tokenizer = make(CUTS[name](), normalizer)
    pieces = Pieces(tokenizer)
    found = [pieces.encode(text) for text in texts]
    wanted = tokenize_fast(tokenizer, texts)
    for text, ids, own in zip(texts, found, wanted, strict=True):
        assert ids is None or ids == own, text
    for text, ids in zip(texts, found, strict=True):
        assert ids is not None or not text.isascii()
    # What a library of another Unicode version may read otherwise is left out; most of it is not.
    assert sum(ids is not None for ids in found) > 1000


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "Metaspace": (lambda: make(pre_tokenizers.Metaspace()), "it cuts text by Metaspace"),
    "a space before": (lambda: make(pre_tokenizers.ByteLevel(add_prefix_space=True)), "it cuts text by ByteLevel"),
    "lower case": (lambda: make(_byte_level(), normalizers.Lowercase()), "it changes text"),
    "dropout": (lambda: make(_byte_level(), dropout=0.1), "it draws lots"),
    "a token that takes spaces": (
        lambda: make(_byte_level(), added=(AddedToken("<m>", lstrip=True),)),
        "an added token takes more",
    ),
    "an expression that Python reads otherwise": (lambda: make(_split(r"\h+|\S|\s")), "its expressions are read other"),
    "an expression that Python cannot read": (lambda: make(_split(r"\H+|\h")), "an expression is none of Python's"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_tokenizer_that_goes_another_way_is_not_imitated(why: str) -> None:
    make_one, words = REFUSED[why]
    with pytest.raises(NotUnderstoodError, match=words):
        Pieces(make_one())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> FastTokenizer:
    monkeypatch.setattr(fast_tokenizer, "_NUM_BEFORE", 10)
    monkeypatch.setattr(fast_tokenizer, "_NUM_CHECKED", 10)
    return FastTokenizer(make(_byte_level()))


TEXTS = [f"The cat {i}" for i in range(10)]


def test_after_the_first_texts_the_tokenizer_is_asked_for_none_that_is_understood(
    quick: FastTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tokenize_fast(quick.tokenizer, [*TEXTS, "\ue000"])
    asked: list[str] = []
    monkeypatch.setattr(
        fast_tokenizer, "tokenize_fast", lambda own, texts: asked.extend(texts) or tokenize_fast(own, texts)
    )
    for _ in range(3):
        assert quick([*TEXTS, "\ue000"]) == wanted
    assert quick._pieces is not None
    quick._pieces._unknown.add("\ue001")
    assert quick(["The \ue001"]) == tokenize_fast(quick.tokenizer, ["The \ue001"])
    assert asked == [*TEXTS, "\ue000", *TEXTS, "\ue000", "The \ue001"]


def test_pieces_that_give_other_tokens_are_found_before_a_text_is_given_out(quick: FastTokenizer) -> None:
    wanted = tokenize_fast(quick.tokenizer, TEXTS)
    assert quick(TEXTS) == wanted
    assert quick._pieces is not None
    quick._pieces._ids_of_parts["The cat 3"] = [7]
    assert quick(TEXTS) == wanted
    assert quick._pieces is None
    assert quick(TEXTS) == wanted


def test_texts_whose_pieces_never_come_again_are_left_to_the_tokenizer(quick: FastTokenizer) -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdef", k=3)) + " " for _ in range(60)]
    for start in range(0, 60, 10):
        assert quick(texts[start : start + 10]) == tokenize_fast(quick.tokenizer, texts[start : start + 10])
    assert quick._pieces is None
