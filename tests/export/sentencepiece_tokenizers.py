"""A small tokenizer of SentencePiece's kind, as transformers writes it in tokenizer.json."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
# In the order of their scores; each is made of two that stand before it, or of characters.
MERGED = ("th", "he", "▁t", "the", "▁the", "er", "▁o", "ther", "other", "▁other", "in", "ing", "▁▁", "ll", "ello", "▁h")


def pairs_of(token: str, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make `token`."""
    pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
    return [(left, right) for left, right in pairs if left in vocab and right in vocab]


def sentencepiece_tokenizer(*, adds_space: bool = True) -> PreTrainedTokenizerFast:
    """Tokens for ASCII letters and sixteen longer ones, bytes for all else."""
    pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *MERGED, "▁", *"abcdefghijklmnopqrstuvwxyz.,"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [pair for token in MERGED for pair in pairs_of(token, vocab)]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if adds_space else [replace])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
