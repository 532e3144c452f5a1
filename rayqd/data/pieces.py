"""A text's tokens put together from those of its pieces, each of which is tokenized once.

    <|im_start|>user\\nname a colour<|im_end|>     added tokens are found first
                user \\n name _a _colour           then the pre-tokenizer cuts words, of which the model makes tokens

No token reaches over the end of a piece, and a language's words come again and again. So a dictionary of pieces takes
a fraction of the time that a tokenizer needs, which merges every word anew. Added tokens and pieces are found
here, by the tokenizer's own expressions; the tokens of a piece are always the tokenizer's. Whether its expressions are
understood is tried on a text of all of ASCII, and for every other character when it is first met. What is not
understood is not tokenized here.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Description: TypeAlias = dict[str, Any]  # of a part of a tokenizer, as its file has it

_MOST_PIECES = 1 << 17  # that are remembered
_LONGEST_PIECE = 32  # characters of one that is
_MOST_PARTS = 1 << 12  # between added tokens: a system prompt is the same in many texts
_LONGEST_PART = 1 << 10  # characters
# What `ByteLevel` cuts by, of GPT-2.
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_IN_ASCII = {r"\p{L}": "a-zA-Z", r"\p{N}": "0-9"}
_NUM_TRIED = 1 << 14  # characters of the text on which the cutting is tried
_BESIDE = ("a", "A", "1", " ", ".", "'", "\n", " a", "_")  # a character of each kind that expressions tell apart


class NotUnderstoodError(ValueError):
    """A tokenizer cuts text in a way that is not imitated here."""


class Pieces:
    """Makes tokens of texts by a tokenizer of the `tokenizers` library."""

    num_cut = 0
    """Pieces that were looked up."""

    num_missed = 0
    """Those of them that had not been met before."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read how it cuts text. Raises NotUnderstoodError."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._backend = cast(Any, tokenizer).backend_tokenizer
        described = cast(_Description, json.loads(self._backend.to_str()))
        if described["model"].get("dropout"):
            raise NotUnderstoodError("it draws lots")
        self._is_normalized = _normal_form(described["normalizer"])
        self._first_added, self._then_added, self._ids_of_added = _read_added(described["added_tokens"])
        expressions = _expressions(described["pre_tokenizer"])
        self._expressions = [_compile(text) for text in expressions]
        self._ascii = [
            _compile_ascii(text) or whole for text, whole in zip(expressions, self._expressions, strict=True)
        ]
        if any(each.groups for each in self._expressions):
            raise NotUnderstoodError("an expression has groups")
        is_byte_level = _parts(described["pre_tokenizer"])[-1]["type"] == "ByteLevel"
        self._bytes = bytes_to_unicode() if is_byte_level else {}  # as GPT-2 writes bytes, a character each
        self._ids: dict[str, Sequence[int]] = {}  # of pieces
        self._ids_of_parts: dict[str, Sequence[int]] = {}
        self._known: set[str] = set()  # characters beyond ASCII that are cut as the tokenizer does
        self._unknown: set[str] = set()
        text = _text_of_ascii()
        if not all(self._cuts_as_tokenizer(text, expressions) for expressions in (self._ascii, self._expressions)):
            raise NotUnderstoodError("its expressions are read otherwise")

    def encode(self, text: str) -> list[int] | None:
        """Return the tokens of `text`; None where it has a character that is not understood."""
        if not text.isascii() and not self._understands(text):
            return None
        ids: list[int] = []
        for index, part in enumerate(self._cut_added(text)):
            if index % 2:
                ids.append(self._ids_of_added[part])
            elif part:
                found = self._ids_of_parts.get(part)
                ids += self._encode_part(part) if found is None else found
        return ids

    def _encode_part(self, part: str) -> Sequence[int]:
        """Return the tokens of a text without added tokens, and remember them for a while."""
        remembered = self._ids
        ids: list[int] = []
        pieces = _cut(self._ascii if part.isascii() else self._expressions, part)
        self.num_cut += len(pieces)
        for piece in pieces:
            found = remembered.get(piece)
            ids += self._encode_piece(piece) if found is None else found
        if len(part) <= _LONGEST_PART:
            if len(self._ids_of_parts) >= _MOST_PARTS:
                self._ids_of_parts.clear()
            self._ids_of_parts[part] = ids
        return ids

    def _cut_added(self, text: str) -> list[str]:
        """Return text, added token, text, added token, ..., text."""
        parts = cast("list[str]", self._first_added.split(text))
        if self._then_added is None:
            return parts
        cut = ([part] if i % 2 else cast("list[str]", self._then_added.split(part)) for i, part in enumerate(parts))
        return [part for several in cut for part in several]

    def _encode_piece(self, piece: str) -> Sequence[int]:
        """Return the tokens that the model makes of a piece, and remember them."""
        self.num_missed += 1
        text = piece.encode().decode("latin-1").translate(self._bytes) if self._bytes else piece
        ids = [token.id for token in self._backend.model.tokenize(text)]
        if len(piece) <= _LONGEST_PIECE and len(self._ids) < _MOST_PIECES:
            self._ids[piece] = ids
        return ids

    def _understands(self, text: str) -> bool:
        characters = {character for character in set(text) if not character.isascii()}
        for character in characters - self._known - self._unknown:
            neighbours = (*_BESIDE, character)
            tried = "".join(before + character + after for before in neighbours for after in neighbours)
            (self._known if self._cuts_as_tokenizer(tried, self._expressions) else self._unknown).add(character)
        return characters.isdisjoint(self._unknown) and (not self._is_normalized or _is_nfc(text))

    def _cuts_as_tokenizer(self, text: str, expressions: Sequence[Any]) -> bool:
        """Return whether the pieces of a text without added tokens are the tokenizer's."""
        cut = cast("list[tuple[str, tuple[int, int]]]", self._backend.pre_tokenizer.pre_tokenize_str(text))
        return [text[start:end] for _, (start, end) in cut] == _cut(expressions, text)


def _cut(expressions: Sequence[Any], text: str) -> list[str]:
    """Return the pieces of a text that is cut by one expression after the other."""
    pieces = _cut_by(expressions[0], text)
    for expression in expressions[1:]:
        pieces = [own for piece in pieces for own in _cut_by(expression, piece)]
    return pieces


def _cut_by(expression: Any, text: str) -> list[str]:
    """Return what matches and what stands between, in their order."""
    found = cast("list[str]", expression.findall(text))
    if "" not in found and sum(map(len, found)) == len(text):
        return found
    pieces: list[str] = []
    end = 0
    for match in expression.finditer(text):
        pieces += [text[end : match.start()], match[0]]
        end = match.end()
    return [piece for piece in (*pieces, text[end:]) if piece]


def _read_added(added: Sequence[_Description]) -> tuple[re.Pattern[str], re.Pattern[str] | None, dict[str, int]]:
    """Return the expressions of the added tokens that are looked for first and then, and all their ids."""
    if any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in added):
        raise NotUnderstoodError("an added token takes more than its text")
    if not all(token["content"] and _is_nfc(token["content"]) for token in added):
        raise NotUnderstoodError("an added token may stand in a text in another form")
    first = _any_of([token["content"] for token in added if not token["normalized"]])
    then = [token["content"] for token in added if token["normalized"]]
    return first, _any_of(then) if then else None, {token["content"]: token["id"] for token in added}


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Return the expression of the longest of `texts` that stands somewhere; of none it matches nowhere."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _normal_form(normalizer: _Description | None) -> bool:
    """Return whether text is brought into the form NFC, which ASCII has; raises NotUnderstoodError for another."""
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        forms = [_normal_form(part) for part in normalizer["normalizers"]]
        return any(forms)
    if normalizer["type"] != "NFC":
        raise NotUnderstoodError(f"it changes text ({normalizer['type']})")
    return True


def _parts(pre_tokenizer: _Description | None) -> list[_Description]:
    if pre_tokenizer is None:
        raise NotUnderstoodError("it does not cut text")
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _expressions(pre_tokenizer: _Description | None) -> list[str]:
    """Return the expressions that text is cut by, one after the other. Raises NotUnderstoodError."""
    parts = _parts(pre_tokenizer)
    expressions = [text for i, part in enumerate(parts) for text in _expression(part, is_last=i == len(parts) - 1)]
    if not expressions:
        raise NotUnderstoodError("it does not cut text")
    return expressions


def _expression(part: _Description, *, is_last: bool) -> list[str]:
    kind = part["type"]
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return [part["pattern"]["Regex"] if "Regex" in part["pattern"] else re.escape(part["pattern"]["String"])]
    if kind == "Digits":
        return [r"\p{N}" if part["individual_digits"] else r"\p{N}+"]
    if kind == "ByteLevel" and is_last and not part["add_prefix_space"]:
        return [_BYTE_LEVEL] if part["use_regex"] else []
    raise NotUnderstoodError(f"it cuts text by {kind}")


def _compile(expression: str) -> Any:
    try:
        return regex.compile(expression)
    except regex.error as error:
        raise NotUnderstoodError(f"an expression is none of Python's ({error})") from error


def _compile_ascii(expression: str) -> re.Pattern[str] | None:
    """Return what matches in ASCII as `expression` does, by the library that is quicker; None where it cannot say it.

    Whether it does is tried afterwards.
    """
    for kind, characters in _IN_ASCII.items():
        inside = re.sub(r"\[(?:\\.|[^\]\\])*\]", lambda found: found[0].replace(kind, characters), expression)  # noqa: B023
        expression = inside.replace(kind, f"[{characters}]")
    try:
        return None if re.search(r"\\[pP]", expression) else re.compile(expression, re.ASCII)
    except re.error:
        return None


def _text_of_ascii() -> str:
    """Return a text in which all characters of ASCII stand beside all kinds of others."""
    draw = random.Random(0)
    kinds = ("abcxyzABC", "0123456789", " ", "\n", "'", ".,:;!?-_", "".join(map(chr, range(128))))
    words = ("'s", "'LL", "'re", "n't", "  ", "\r\n", "\n\n", " \n", "http://", "12345")
    texts = (draw.choice(words) if draw.random() < 0.1 else draw.choice(draw.choice(kinds)) for _ in range(_NUM_TRIED))
    return "".join(texts)


def _is_nfc(text: str) -> bool:
    return unicodedata.is_normalized("NFC", text)
