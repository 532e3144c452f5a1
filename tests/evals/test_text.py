"""Perplexity of a running text, against plain transformers in float64 and other tools' detokenization."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.config.sections import EvalConfig
from rayqd.data.running_text import detokenize_wikitext, load_text, read_text, window_and_stride
from rayqd.errors import ConfigError, DataError
from rayqd.evals.text import text_perplexity, windows
from rayqd.model.load import load_model, load_tokenizer, output_head

WIKITEXT = Path(os.environ.get("RAYQD_SHARED_DATA", "unknown")) / "wikitext2_valid.txt"
IDS = np.random.default_rng(5).integers(5, 60, 61).astype(np.int32)


def sliding_perplexity(directory: Path, ids: Any, window: int, stride: int) -> tuple[float, int]:
    """As transformers' guide has it (docs/source/en/perplexity.md), in float64 and by the eager forward pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    total, number, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        row = torch.tensor(ids[begin:end], dtype=torch.long)[None]
        labels = row.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            logits = model(row).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none", ignore_index=-100)
        total += nll.sum().item()
        number += int((labels[0, 1:] != -100).sum())
        before = end
        if end == len(ids):
            break
    return math.exp(total / number), number


@pytest.mark.parametrize(
    ("window", "stride"), [(16, 16), (16, 4), (16, 15), (16, 1), (60, 60), (61, 61), (200, 200)], ids=str
)
def test_it_is_what_transformers_computes_in_float64(window: int, stride: int, tiny_model: Path) -> None:
    model = load_model(tiny_model, "float32")
    found, number = text_perplexity(model, output_head(model), windows(IDS, window, stride), 64)
    expected, expected_number = sliding_perplexity(tiny_model, IDS, window, stride)
    assert number == expected_number
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(2, 1), (7, 3), (16, 16), (30, 29), (100, 1)])
def test_every_token_is_scored_once_with_the_context_that_was_promised(window: int, stride: int) -> None:
    rows = windows(np.arange(61, dtype=np.int32), window, stride)
    scored = [token for row in rows for token in row.completion_ids.tolist()]
    first_of_disjoint = set(range(0, 61, stride)) if stride == window else {0}
    assert scored == [token for token in range(61) if token not in first_of_disjoint]
    for row in rows:
        both = [*row.prompt_ids.tolist(), *row.completion_ids.tolist()]
        assert both == list(range(both[0], both[0] + len(both)))
        assert len(both) <= window
        assert both[0] == 0 or len(row.prompt_ids) >= max(window - stride, 1)


def test_detokenization_is_that_of_lm_eval() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    lines = [
        ' = Valkyria Chronicles III = \n = = Plot = = \n A " quoted text " , and ( one in brackets ) : yes . ',
        " It 's 1 @,@ 000 @.@ 5 km @-@ long ; the players ' own [ sic ] { x } 30 ° C ! ",
    ]
    if WIKITEXT.exists():
        lines += WIKITEXT.read_text(encoding="utf-8").splitlines()[:400]
    for text in ["\n".join(lines), *lines]:
        assert detokenize_wikitext(text) == wikitext_detokenizer({"page": text})


def test_a_text_file_is_taken_as_it_stands_and_rows_are_joined_by_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n\n  two \n", encoding="utf-8")
    assert read_text(EvalConfig(text=str(file))) == "one\n\n  two \n"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "", "two")), encoding="utf-8")
    assert read_text(EvalConfig(text=str(rows))) == "one\n\n\n\ntwo"


def test_tokens_are_the_tokenizers_and_may_be_limited(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("some words of a text , 1 @,@ 000 of them", encoding="utf-8")
    tokenizer = load_tokenizer(tiny_model)
    ids, remark = load_text(tokenizer, EvalConfig(text=str(file)))
    assert ids.tolist() == tokenizer(file.read_text())["input_ids"]
    assert "eval.detokenize = wikitext" in remark
    limited, _ = load_text(tokenizer, EvalConfig(text=str(file), text_tokens=3))
    assert limited.tolist() == ids.tolist()[:3]
    plain, remark = load_text(tokenizer, EvalConfig(text=str(file), detokenize="wikitext"))
    assert plain.tolist() == tokenizer("some words of a text, 1,000 of them")["input_ids"]
    assert remark == ""


def test_what_cannot_be_measured_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="of which none can be predicted"):
        load_text(load_tokenizer(tiny_model), EvalConfig(text=str(empty)))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match=rf"{re.escape(str(rows))}.*needs rows with a text in the field `text`"):
        read_text(EvalConfig(text=str(rows)))
    with pytest.raises(ConfigError, match=r"eval\.window=512 is more than the 256 tokens that the model takes"):
        window_and_stride(EvalConfig(window=512), 256)
    with pytest.raises(ConfigError, match=r"eval\.stride=17 is more than the window of 16 tokens"):
        window_and_stride(EvalConfig(window=16, stride=17), 256)
    assert window_and_stride(EvalConfig(), 4096) == (2048, 2048)
    assert window_and_stride(EvalConfig(stride=64), 256) == (256, 64)
