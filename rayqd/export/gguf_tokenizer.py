"""A tokenizer as GGUF metadata: tokens, their types, merges or scores, special ids, chat template."""

from __future__ import annotations

import json
from typing import Any, NotRequired, TypedDict

from gguf import GGUFWriter, TokenType

from rayqd.errors import ModelError
from rayqd.export.gguf_sentencepiece import add_sentencepiece, is_sentencepiece

# How text is split before merging, by what tokenizer.json says of it, and whether a piece that is a token is merged at
# all (`ignore_merges`); the names are llama.cpp's, which has no other pairs of the two.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BY_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
_SPLITS = {
    (_CONTRACTIONS + r"\p{N}" + _REST, False): "qwen2",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}{1,3}" + _REST, False): "dbrx",
    (_BY_CASE + r"\p{N}" + _REST.replace(r"[\r\n]*", r"[\r\n/]*"), True): "tekken",
}


class PreTokenizer(TypedDict, total=False):
    """How text is split, as tokenizer.json has it: one kind, or a sequence of them."""

    type: str
    pretokenizers: list[PreTokenizer]
    use_regex: bool
    pattern: dict[str, str]
    individual_digits: bool
    replacement: str
    prepend_scheme: str
    split: bool


class Normalizer(TypedDict, total=False):
    """What is done to text before it is split: one kind, or a sequence of them."""

    type: str
    normalizers: list[Normalizer]
    pattern: dict[str, str]
    content: str
    prepend: str


class BPEModel(TypedDict):
    """The merges, each "a b" or [a, b], and the tokens' ids."""

    type: str
    vocab: dict[str, int]
    merges: list[str | list[str]]
    byte_fallback: NotRequired[bool]
    ignore_merges: NotRequired[bool]
    unk_token: NotRequired[str | None]


class AddedToken(TypedDict):
    """A token beside those of the merges."""

    id: int
    content: str
    special: bool


class TokenizerJson(TypedDict):
    """What GGUF needs of a tokenizer.json."""

    normalizer: NotRequired[Normalizer | None]
    pre_tokenizer: NotRequired[PreTokenizer | None]
    model: BPEModel
    added_tokens: list[AddedToken]


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, config: Any) -> None:
    """Add the tokenizer to the file; raises ModelError where it is none of the kinds that llama.cpp knows."""
    described = _to_json(tokenizer)
    tokens, types = _tokens(described, config.vocab_size)
    if is_sentencepiece(described):
        add_sentencepiece(writer, described, tokens, types)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(described))
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_name(tokenizer: TokenizerJson) -> str:
    """Return llama.cpp's name of how a tokenizer.json splits text. Raises ModelError where it has none."""
    pre_tokenizer: PreTokenizer = tokenizer.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step.get("type") for step in steps]
    ignores_merges = tokenizer["model"].get("ignore_merges", False)
    name = None
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        name = _SPLITS.get((steps[0].get("pattern", {}).get("Regex", ""), ignores_merges))
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and not ignores_merges:
        name = "smollm"
    elif kinds == ["ByteLevel"] and not ignores_merges:
        name = "gpt-2"
    if name is None:
        raise ModelError("the tokenizer splits text in a way that GGUF export has no name for; use compressed-tensors")
    return name


def _to_json(tokenizer: Any) -> TokenizerJson:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described: TokenizerJson | None = json.loads(backend.to_str()) if backend is not None else None
    if described is None or described["model"].get("type") != "BPE":
        raise ModelError(
            "GGUF export takes BPE tokenizers, byte-level or SentencePiece's, and this model's is another kind"
        )
    return described


def _tokens(described: TokenizerJson, vocab_size: int) -> tuple[list[str], list[int]]:
    """Return token and type of each of the embedding's rows; rows without a token are marked as unused."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    added = {token["id"]: token for token in described["added_tokens"]}
    by_id = {i: token for token, i in described["model"]["vocab"].items()}
    by_id |= {i: token["content"] for i, token in added.items()}
    if by_id and max(by_id) >= vocab_size:
        raise ModelError(f"the tokenizer has token {max(by_id)}, and the model only {vocab_size} rows of embedding")
    for i, token in by_id.items():
        tokens[i] = token
        types[i] = int(TokenType.NORMAL)
        if i in added:
            types[i] = int(TokenType.CONTROL if added[i]["special"] else TokenType.USER_DEFINED)
        if token == described["model"].get("unk_token"):
            types[i] = int(TokenType.UNKNOWN)
    return tokens, types


def _adds_bos(tokenizer: Any) -> bool:
    """Whether text starts with the bos token."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
