"""Bits a weight of the whole model, against the tensors of its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rayqd.config import Config
from rayqd.export.write import export
from rayqd.model.load import load_model
from rayqd.model.student import Student
from rayqd.model.weight_bits import count_weight_bits, describe_bits, describe_dense_body, mean_bits
from tests.export.small_models import byte_tokenizer
from tests.model.small_architectures import make_model


@pytest.mark.parametrize(
    ("model_type", "quant"),
    [
        ("llama", {"group_size": 32}),
        ("llama", {"group_size": 32, "rule": "asymmetric"}),
        ("llama", {"format": "nf4", "group_size": 32}),
        ("mixtral", {"group_size": 32}),
        ("deepseek_v3", {"group_size": 32, "ignore": ["lm_head", "mlp.experts"]}),
        ("qwen2_moe", {"group_size": 32, "rule": "asymmetric"}),  # experts stay dense
    ],
)
def test_the_bits_are_those_of_the_stored_tensors(
    model_type: str, quant: dict[str, Any], tmp_path: Path, tiny_config: Any
) -> None:
    source = tmp_path / "source"
    make_model(model_type, vocab_size=288).to(torch.bfloat16).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    config: Config = tiny_config(model={"name": str(source), "dtype": "bfloat16"}, quant={**quant, "init": "rtn"})
    model = load_model(source, "bfloat16")
    counted = count_weight_bits(model, config)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    export(Student(model, config), source, config, tmp_path / "export")
    stored = load_file(tmp_path / "export" / "model.safetensors")
    kept = {
        n: t for n, t in stored.items() if "quant_map" not in n and "quant_state" not in n
    }  # tables of bitsandbytes
    bias = sum(8 * t.nbytes for n, t in stored.items() if n.endswith("e_score_correction_bias"))  # a buffer
    assert sum(each.num_weights for each in counted) == num_weights
    assert sum(each.num_bits for each in counted) == sum(8 * t.nbytes for t in kept.values()) - bias


def test_kinds_and_the_line_on_what_stays_in_16_bits() -> None:
    def count(model_type: str, **quant: Any) -> Any:
        config = Config.model_validate({"quant": {"group_size": 32, **quant}, "model": {"dtype": "bfloat16"}})
        return count_weight_bits(make_model(model_type), config)

    counted = {each.kind: each for each in count("qwen2_moe")}
    assert set(counted) == {"linear", "experts", "router", "other", "embedding", "head"}
    assert counted["experts"].num_weights == 2 * 4 * 3 * 32 * 64  # layers, experts, matrices
    assert counted["router"].num_weights == 2 * (4 + 1) * 64  # a router and a gate a layer
    assert counted["router"].bits_per_weight == counted["head"].bits_per_weight == 16
    # in groups of 32 a weight is 4 bits and half a bit of scale; each matrix has its shape, two int64, besides
    assert counted["experts"].bits_per_weight == 4.5 + 128 / (32 * 64)
    assert describe_dense_body(list(counted.values())) == ""
    assert mean_bits(count("qwen2_moe", ignore=["lm_head", "mlp.experts"])) > mean_bits(list(counted.values()))
    assert describe_bits(count("llama")).endswith("linear 4.5, other 16, embedding 16, head 16") or "linear 4.5" in (
        describe_bits(count("llama"))
    )
    words = describe_dense_body(count("gpt_oss"))
    assert words.endswith("% of the body's weights stay in 16 bits, most of them experts")
