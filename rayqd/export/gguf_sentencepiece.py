"""A SentencePiece tokenizer as GGUF metadata, from the tokenizer.json that transformers made of it.

tokenizer.json has merges in the order of their scores; llama.cpp merges the two neighbours whose whole has the highest
score. Both do the same where the merges are all pairs of tokens that make a token, those of one token together.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gguf import GGUFWriter, TokenType

from rayqd.errors import ModelError

if TYPE_CHECKING:
    from rayqd.export.gguf_tokenizer import TokenizerJson

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL_SCORE = -1000.0  # llama.cpp's converter's
_REFUSAL = "the tokenizer is one of SentencePiece's that GGUF export does not know: {}; use compressed-tensors"


def is_sentencepiece(described: TokenizerJson) -> bool:
    """Return whether characters that no token has become bytes, as SentencePiece does it."""
    return bool(described["model"].get("byte_fallback"))


def add_sentencepiece(writer: GGUFWriter, described: TokenizerJson, tokens: list[str], types: list[int]) -> None:
    """Add model, scores and space prefix; mark bytes among `types`. Raises ModelError where llama.cpp would differ."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(_adds_space(described))
    scores = _scores(described)
    for i, token in enumerate(tokens):
        if types[i] == TokenType.NORMAL and _BYTE.fullmatch(token):
            types[i] = int(TokenType.BYTE)
    special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
    found = (_SPECIAL_SCORE if types[i] in special else scores.get(token, 0.0) for i, token in enumerate(tokens))
    writer.add_token_scores(list(found))


def _scores(described: TokenizerJson) -> dict[str, float]:
    """Return minus the place of each merged token among the merges, the first highest."""
    vocab, merges = described["model"]["vocab"], described["model"]["merges"]
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else (m[0], m[1]) for m in merges]
    scores: dict[str, float] = {}
    last = ""
    for left, right in pairs:
        whole = left + right
        if whole != last and whole in scores:
            raise ModelError(_REFUSAL.format(f"the merges of {whole!r} do not stand together"))
        scores.setdefault(whole, -float(len(scores)))
        last = whole
    known, added = set(pairs), {token["content"] for token in described["added_tokens"]}
    for token in vocab:
        if token in added or _BYTE.fullmatch(token):
            continue
        for i in range(1, len(token)):
            if token[:i] in vocab and token[i:] in vocab and (token[:i], token[i:]) not in known:
                raise ModelError(_REFUSAL.format(f"{token[:i]!r} and {token[i:]!r} are no merge"))
    return scores


def _adds_space(described: TokenizerJson) -> bool:
    """Return whether text begins with a space that is not there."""
    normalizer, pre_tokenizer = described.get("normalizer"), described.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    adds = replaces = False
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == _SPACE:
            adds = True
        elif kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == _SPACE:
            replaces = True
        else:
            raise ModelError(_REFUSAL.format(f"its normalizer {kind}"))
    if pre_tokenizer is not None:
        kind, is_whole = pre_tokenizer.get("type"), not pre_tokenizer.get("split", True)
        if kind == "Metaspace" and pre_tokenizer.get("replacement") == _SPACE and is_whole:
            return adds or pre_tokenizer.get("prepend_scheme", "always") != "never"
        is_split = kind == "Split" and pre_tokenizer.get("pattern") == {"String": " "}
        if not is_split:  # which finds no space once they are replaced
            raise ModelError(_REFUSAL.format(f"its pre-tokenizer {kind}"))
    if not replaces:
        raise ModelError(_REFUSAL.format("its spaces stay spaces"))
    return adds
