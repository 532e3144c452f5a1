"""A byte-level BPE tokenizer as GGUF metadata: tokens, their types, merges, special ids, chat template."""

from __future__ import annotations

import json
from typing import Any

from gguf import GGUFWriter, TokenType

from rayqd.errors import ModelError

# How text is split before merging, by what tokenizer.json says of it; the names are llama.cpp's.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, config: Any) -> None:
    """Raises ModelError when the tokenizer is not a byte-level BPE that llama.cpp has a name for."""
    described = _described(tokenizer)
    pre = pre_tokenizer_name(described)
    tokens, types = _tokens(described, config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]])
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token_id is not None:
            add(token_id)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_name(described: dict[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer.json splits text."""
    steps = described.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        found = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    elif kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        found = "smollm"
    else:
        found = "gpt-2" if kinds == ["ByteLevel"] else None
    if found is None:
        raise ModelError("the tokenizer splits text in a way that GGUF export has no name for; use compressed-tensors")
    return found


def _described(tokenizer: Any) -> dict[str, Any]:
    """What tokenizer.json says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if described["model"].get("type") != "BPE" or described["model"].get("byte_fallback"):
        raise ModelError("GGUF export takes byte-level BPE tokenizers, and this model's is another kind")
    return described


def _tokens(described: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Token and type of each of the embedding's rows; rows without a token are marked as unused."""
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
    return tokens, types


def _adds_bos(tokenizer: Any) -> bool:
    """Whether text starts with the bos token."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
