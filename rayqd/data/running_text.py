"""The running text whose perplexity is measured: a file as it stands, or a data set's texts one after the other."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from rayqd.config.data_source import path_of_source
from rayqd.config.sections import EvalConfig
from rayqd.data.example_set import ExampleSet, RunningText
from rayqd.data.readers import read_hub
from rayqd.data.readers.kind import Kind, kind_of
from rayqd.data.sources import open_table
from rayqd.errors import ConfigError, DataError
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST_WINDOW = 2048  # without eval.window: what papers on quantization take
_BETWEEN = "\n\n"  # rows of a data set, as in GPTQ's code and the papers after it
_SEPARATORS = re.compile(r" @[-,.]@ ")

# As Megatron-LM and lm-evaluation-harness undo WikiText's tokenization, in their order.
_REPLACED = (
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
)  # fmt: skip
_INSIDE = (r"\(\s*([^\)]*?)\s*\)", r"(\1)"), (r"\[\s*([^\]]*?)\s*\]", r"[\1]"), (r"{\s*([^}]*?)\s*}", r"{\1}")
_QUOTED = (r"\"\s*([^\"]*?)\s*\"", r'"\1"'), (r"'\s*([^']*?)\s*'", r"'\1'")
_LAST = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
)  # fmt: skip


def window_and_stride(settings: EvalConfig, context_length: int) -> tuple[int, int]:
    """Return `eval.window` and `eval.stride` in tokens. Raises ConfigError for more than the model takes."""
    window = settings.window or min(_LONGEST_WINDOW, context_length)
    if window > context_length:
        raise ConfigError(f"eval.window={window} is more than the {context_length} tokens that the model takes")
    stride = settings.stride or window
    if stride > window:
        raise ConfigError(f"eval.stride={stride} is more than the window of {window} tokens: it would pass over some")
    return window, stride


def with_text(
    heldout: ExampleSet, tokenizer: PreTrainedTokenizerBase, settings: EvalConfig, context_length: int
) -> ExampleSet:
    """Return `heldout` with `eval.text` beside it, and what is to be said of that; as it is without one.

    Raises DataError and ConfigError.
    """
    if settings.text is None:
        return heldout
    window, stride = window_and_stride(settings, context_length)
    ids, remark = load_text(tokenizer, settings)
    said = f"perplexity of {settings.text}: {len(ids):,} tokens, windows of {window} that move by {stride}"
    text = RunningText(token_ids=ids, window=window, stride=stride)
    return replace(heldout, text=text, remarks=(*heldout.remarks, said, *([remark] if remark else [])))


def load_text(tokenizer: PreTrainedTokenizerBase, settings: EvalConfig) -> tuple[IntArray, str]:
    """Return the token ids of `eval.text`, [N], and a remark for the user, which may be empty.

    With what the tokenizer puts before every text, as a beginning of sequence. Raises DataError for a source that
    cannot be read, and for one of fewer than two tokens.
    """
    assert settings.text is not None
    text = read_text(settings)
    remark = ""
    if settings.detokenize == "wikitext":
        text = detokenize_wikitext(text)
    elif _SEPARATORS.search(text):
        remark = (
            f"{settings.text} is tokenized WikiText (it has @-@ or @,@ in it), and is measured as it stands, as papers "
            "on quantization do; eval.detokenize = wikitext makes plain text of it"
        )
    # Longer than any model takes, on purpose: windows cut it, and the tokenizer need not warn of that.
    ids = cast("list[int]", tokenizer(text, verbose=False)["input_ids"])[: settings.text_tokens]
    if len(ids) < 2:
        raise DataError(f"eval.text={settings.text} has {len(ids)} tokens, of which none can be predicted")
    return np.asarray(ids, dtype=np.int32), remark


def read_text(settings: EvalConfig) -> str:
    """Return the text of `eval.text`. Raises DataError."""
    source = settings.text
    assert source is not None
    path = path_of_source(source)
    if path is not None and path.is_file() and kind_of(path, str(path)) is Kind.TEXT:
        try:
            return path.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"eval.text={source} cannot be read as UTF-8 text: {error}") from error
    table = open_table(source, settings.text_split, settings.text_subset)
    if table is None:
        table = read_hub(source, settings.text_split, settings.text_subset)
    return _BETWEEN.join(_text_of(table.fetch(i), table.location(i)) for i in range(table.num_rows))


def _text_of(row: object, location: str) -> str:
    text = cast("dict[str, object]", row).get("text") if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise DataError(f"{location}: eval.text needs rows with a text in the field `text`")
    return text


def detokenize_wikitext(text: str) -> str:
    """Undo WikiText's spaces around punctuation, brackets and quotes, and its `@-@`; `<unk>` stays."""
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for pattern, new in (*_INSIDE, *_QUOTED):
        text = re.sub(pattern, new, text)
    for old, new in _LAST:
        text = text.replace(old, new)
    return text
