"""Models that read images: their text tower is trained, and the rest is in the export as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import byte_tokenizer
from transformers import AutoConfig, AutoModelForImageTextToText

from rayqd.driver.preflight import check
from rayqd.export.logits import check_logits, compute_student_logits, short_row
from rayqd.export.write import export
from rayqd.model.student import Student

TEXT: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
IMAGE = {"image_token_id": 280, "video_token_id": 281, "vision_start_token_id": 282, "vision_end_token_id": 283}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 1, "image_token_index": 280},
    "gemma4": {"text_config": TEXT, "vision_config": VISION, "image_token_id": 280},
    "qwen2_5_vl": {"text_config": TEXT | MROPE, "vision_config": QWEN_VISION, **IMAGE},
    "qwen3_vl": {"text_config": TEXT | MROPE, "vision_config": QWEN_VISION, **IMAGE},
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
        "image_token_index": 280,
    },
    "qwen3_5": {"text_config": TEXT | LINEAR, "vision_config": QWEN_VISION, **IMAGE},
}


def make_source(name: str, directory: Path) -> None:
    """A random model as its makers publish it: with its towers, in bfloat16, and a name that nobody loads."""
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(name, **MODELS[name]))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter).mul_(0.1).to(torch.bfloat16)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_text_tower_is_quantized_and_the_rest_stays_byte_for_byte(
    name: str, tmp_path: Path, tiny_config: Any, make_rollouts: Any
) -> None:
    source, directory = tmp_path / "source", tmp_path / "export"
    make_source(name, source)
    config = tiny_config(model={"name": str(source), "dtype": "float32"}, quant={"group_size": 32})
    check(config)
    student = Student.load(source, config)
    generator = torch.Generator().manual_seed(1)
    for parameter in student.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    export(student, source, config, directory)
    row = short_row(make_rollouts((20, 30)))
    logits = compute_student_logits(student, row)
    check_logits(directory, logits, row, "float32")

    theirs, ours = (load_file(each / "model.safetensors") for each in (source, directory))
    packed = {key.removesuffix("_packed") for key in ours if key.endswith("weight_packed")}
    stored = {key for key in ours if "weight_packed" not in key and "weight_scale" not in key and "_shape" not in key}
    assert packed | stored == theirs.keys()
    towers = {key for key in theirs if re.search(r"vision|visual|projector", key)}
    assert towers
    assert not packed & towers
    for key in towers:
        assert ours[key].dtype == torch.bfloat16
        assert torch.equal(ours[key], theirs[key]), key

    whole = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    assert [type(whole).__name__] == json.loads((source / "config.json").read_text())["architectures"]
    with torch.no_grad():
        again = whole(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits[0, :-1]
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-4)
    tensors = whole.state_dict()
    assert not [key for key in tensors if re.search(r"vision|visual|projector", key) and "packed" in key]


def test_towers_are_branches_of_the_ignored_layers(tmp_path: Path, tiny_config: Any) -> None:
    source = tmp_path / "source"
    make_source("gemma3", source)
    tensors = load_file(source / "model.safetensors")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = tiny_config(model={"name": str(source), "dtype": "float32"}, quant={"group_size": 32})
    export(Student.load(source, config), source, config, tmp_path / "export")
    ignore = json.loads((tmp_path / "export" / "config.json").read_text())["quantization_config"]["ignore"]
    assert r"re:vision_tower\..*" in ignore
    assert r"re:model\.vision_tower\..*" in ignore
    assert not [entry for entry in ignore if "language_model" in entry]
