"""A given model in a GGUF file: one alone in its directory, and what it says of itself, held against the teacher's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError
from rayqd.model.load import UNLIMITED

_MAX_REASON = 200  # characters of what a library says
_PADDING = re.compile(r"\[PAD\d*\]|<dummy\d+>")  # as llama.cpp's converters fill the rows of the embedding
_HEADS = ("output.weight", "token_embd.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFModel:
    """What a GGUF file says of its model."""

    tokens: Sequence[str]  # by id
    token_types: Sequence[int]  # gguf.TokenType of each
    num_ids: int  # rows of the output head
    context_length: int  # tokens

    def describe_other_tokens(self, tokenizer: Any) -> str:
        """Say in what its tokens differ from those of `tokenizer`, with a few ids; empty where they are the same.

        Padding beyond them is no difference, nor are spaces in added tokens, which llama.cpp's converters rewrite.
        """
        ours = {i: token for token, i in tokenizer.get_vocab().items()}
        differing = [i for i in sorted({*ours, *range(len(self.tokens))}) if not self._is_same(i, ours.get(i))]
        if not differing:
            return ""
        theirs = dict(enumerate(self.tokens))
        examples = ", ".join(f"{i} is {ours.get(i)!r} here and {theirs.get(i)!r} there" for i in differing[:3])
        return f"{len(ours)} and {len(theirs)} tokens, {len(differing)} ids differ: {examples}"

    def _is_same(self, token_id: int, token: str | None) -> bool:
        from gguf import TokenType

        if token_id >= len(self.tokens):
            return False
        own, kind = self.tokens[token_id], self.token_types[token_id]
        if token is None:
            return kind == TokenType.UNUSED or _PADDING.fullmatch(own) is not None
        return own == token or (kind != TokenType.NORMAL and _spaced(own) == _spaced(token))


def find_gguf(directory: Path) -> Path | None:
    """Return the GGUF file that is the model in `directory`; None where other files are.

    Raises ModelError where there are several, or other weights beside it: nothing says which of them is meant.
    """
    files = sorted(file.name for file in directory.glob("*.gguf"))
    if not files:
        return None
    others = files[1:] or sorted(file.name for file in directory.glob("*.safetensors"))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ModelError(
            f"{directory} has {files[0]} and {others[0]}{more}, of which only one can be measured: give a directory "
            "with one of them alone (its other files may be links), of parts the one that they are joined to"
        )
    return directory / files[0]


def read_gguf(file: Path) -> GGUFModel:
    """Read what the file says, and no weights. Raises ModelError where it is damaged, or nothing here loads it."""
    import gguf
    from transformers import AutoConfig

    from rayqd.export.gguf_metadata import CONFIG_KEY

    try:
        # transformers reads the table of the file once more, which is what takes long
        with quiet_libraries(), patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)):
            reader = gguf.GGUFReader(str(file))
            if CONFIG_KEY not in reader.fields:  # which rayqd reads itself
                AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.endswith(".merges")}
        rows = {tensor.name: int(tensor.shape[-1]) for tensor in reader.tensors}
    except Exception as error:  # whatever a damaged file, or a model that transformers does not know, raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_REASON]}"
        raise ModelError(
            f"{file} cannot be loaded here ({reason}): write the model as compressed-tensors, or with dequantized "
            "16-bit weights"
        ) from error
    tokens = fields.get("tokenizer.ggml.tokens")
    heads = [rows[name] for name in _HEADS if name in rows]
    if not tokens or not heads:
        raise ModelError(
            f"{file} has no {'embedding' if tokens else 'tokens'}: it is not all of a model; write it again"
        )
    return GGUFModel(
        tokens=tokens,
        token_types=fields.get("tokenizer.ggml.token_type") or [gguf.TokenType.NORMAL] * len(tokens),
        num_ids=min(heads),
        context_length=fields.get(f"{fields['general.architecture']}.context_length") or UNLIMITED,
    )


def _spaced(token: str) -> str:
    return token.replace("▁", " ").strip()
