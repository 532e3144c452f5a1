"""Checkpoints whose files are not what their config.json says, found before a process is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayqd.driver.preflight import Checked, check
from rayqd.errors import ModelError

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def check_changed(tiny_model: Path, tiny_config: Any, tmp_path: Path) -> Any:
    """A function that checks the tiny model, which is tied, with its tensors and settings changed."""

    def checked(change: Change, **settings: Any) -> Any:
        source = tmp_path / "changed"
        shutil.copytree(tiny_model, source)
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | settings))
        return check(tiny_config(model={"name": str(source)}))

    return checked


def remarks_on_files(checked: Checked) -> list[str]:
    return [remark for remark in checked.remarks if "bits a weight" not in remark]


def with_head(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors: tensors.update({"lm_head.weight": change(tensors["model.embed_tokens.weight"].clone())})


def test_tied_model_that_stores_its_head_twice_is_taken(check_changed: Any) -> None:
    assert remarks_on_files(check_changed(with_head(lambda head: head))) == []


def test_config_that_says_tied_over_a_head_of_its_own_is_refused(check_changed: Any) -> None:
    message = r"config.json says that lm_head.weight is model.embed_tokens.weight \(tie_word_embeddings\)"
    with pytest.raises(ModelError, match=message):
        check_changed(with_head(lambda head: head + 1))


def test_head_of_its_own_is_taken_where_the_config_says_so(check_changed: Any) -> None:
    assert remarks_on_files(check_changed(with_head(lambda head: head + 1), tie_word_embeddings=False)) == []


def test_head_that_is_missing_is_refused_and_not_made_up(check_changed: Any) -> None:
    with pytest.raises(ModelError, match=r"has no lm_head\.weight, which LlamaForCausalLM needs: it is not all of"):
        check_changed(lambda tensors: None, tie_word_embeddings=False)


def test_first_missing_weights_are_named_and_the_others_counted(check_changed: Any) -> None:
    def without_mlp(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".mlp." in name]:
            del tensors[name]

    first = r"has no model\.layers\.0\.mlp\.down_proj\.weight, .*, model\.layers\.0\.mlp\.up_proj\.weight and 3 more, "
    with pytest.raises(ModelError, match=first):
        check_changed(without_mlp)


@pytest.mark.parametrize(("value", "message"), [(0.0, "is all zeros"), (float("nan"), "has infinite values or none")])
def test_head_that_nothing_is_learnt_through_is_refused(check_changed: Any, value: float, message: str) -> None:
    with pytest.raises(ModelError, match=f"the output head lm_head.weight {message}"):
        check_changed(with_head(lambda head: torch.full_like(head, value)), tie_word_embeddings=False)


def test_weights_that_nobody_loads_are_told_with_their_size(check_changed: Any) -> None:
    def with_mtp(tensors: dict[str, Tensor]) -> None:
        tensors["mtp.fc.weight"] = torch.ones(1000, 1000, dtype=torch.bfloat16)  # 2 MB

    assert remarks_on_files(check_changed(with_mtp)) == [
        "1 weight of 2.0 MB that LlamaForCausalLM does not load (mtp.fc.weight): untrained, "
        "carried into the export as they are",
    ]
