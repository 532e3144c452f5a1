"""Models that rayqd cannot take, as their config.json tells, in one line before a process is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rayqd.data.conversation import parse_prompt, parse_row
from rayqd.driver.preflight import check
from rayqd.errors import DataError, ModelError


@pytest.fixture
def check_with(tiny_model: Path, tiny_config: Any, tmp_path: Path) -> Any:
    """A function that checks the tiny model with other settings in its config.json; None takes one out."""

    def checked(card: str = "", **settings: Any) -> None:
        source = tmp_path / "changed"
        shutil.copytree(tiny_model, source)
        (source / "README.md").write_text(card)
        config = json.loads((source / "config.json").read_text()) | settings
        (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        check(tiny_config(model={"name": str(source)}))

    return checked


@pytest.mark.parametrize(
    ("card", "settings", "end"),
    [
        ("", {}, "the 16-bit model that it was made from"),
        ("---\nbase_model: some/model\n---\n", {}, "made from, some/model"),
        ("---\nlicense: mit\nbase_model:\n- some/model-1.5\n---\n", {}, "made from, some/model-1.5"),
        ("", {"_name_or_path": "their/model"}, "made from, their/model"),
        ("", {"_name_or_path": "/models/mine"}, "the 16-bit model that it was made from"),
    ],
)
def test_quantized_checkpoint_is_refused_with_the_model_it_was_made_from(
    check_with: Any, card: str, settings: dict[str, Any], end: str
) -> None:
    with pytest.raises(ModelError, match=r"is quantized already \(fp8\)") as caught:
        check_with(card, quantization_config={"quant_method": "fp8"}, **settings)
    assert str(caught.value).endswith(end)


def test_quantized_text_tower_is_found_too(check_with: Any) -> None:
    with pytest.raises(ModelError, match=r"is quantized already \(awq\)"):
        check_with(text_config={"quantization_config": {"quant_method": "awq"}})


def test_code_of_the_model_s_own_is_named(check_with: Any) -> None:
    files = {"AutoConfig": "configuration_theirs.T", "AutoModelForCausalLM": "modeling_theirs.T"}
    with pytest.raises(
        ModelError, match=r"code of its own \(configuration_theirs\.py, modeling_theirs\.py\)"
    ) as caught:
        check_with(model_type="theirs", auto_map=files)
    assert "set model.trust_remote_code = true" in str(caught.value)


def test_known_model_that_also_has_code_of_its_own_is_run_by_transformers(check_with: Any) -> None:
    check_with(auto_map={"AutoModelForCausalLM": "modeling_theirs.T"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "nothing"}, r"config\.json: transformers \S+ knows no model_type 'nothing': give model.name"),
        ({"model_type": None}, r"config\.json: transformers \S+ needs a model_type, and there is none"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, r"T5Model \(model_type t5\) is no causal language model"),
        ({"num_attention_heads": "two"}, r"config\.json describes no model: "),
    ],
)
def test_config_of_no_causal_language_model_is_one_line(
    check_with: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        check_with(**settings)
    assert "\n" not in str(caught.value)


def test_tokenizer_with_more_tokens_than_the_model_is_refused(
    tiny_model: Path, tiny_config: Any, tmp_path: Path
) -> None:
    source = tmp_path / "fewer"
    shutil.copytree(tiny_model, source)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(64)
    model.save_pretrained(source)
    # 95 printable characters, the newline, <unk> and two of ChatML's
    with pytest.raises(ModelError, match=r"has 99 tokens, and its output head 64 ids: take the tokenizer"):
        check(tiny_config(model={"name": str(source)}))


@pytest.mark.parametrize("parse", [parse_row, parse_prompt])
@pytest.mark.parametrize("key", ["image", "images", "videos", "audio"])
def test_row_with_an_image_is_refused_rather_than_trained_on_without_it(parse: Any, key: str) -> None:
    row = {"prompt": "what is this?", "completion": "a cat"}
    with pytest.raises(DataError, match=f"it has {key}, and rayqd trains on text alone"):
        parse(row | {key: ["cat.png"]})
    parse(row | {key: None})
    parse(row | {key: []})
