"""MLX's logits beside transformers', experts included; skipped without mlx-lm.

    pip install mlx-lm "mlx[cpu]" && pytest tests/export/test_mlx.py

MLX computes scale · code + bias without a rounding to 16 bits. Scales of few digits need none, so that both multiply
with the same weights, in float32.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import tiny_gguf_model
from small_models import byte_tokenizer, of_few_digits, rounded, taken_apart

from rayqd.config.sections import QuantConfig
from rayqd.export.layout_files import write_model
from rayqd.export.quantized_model import QuantizedModel

mlx_lm = pytest.importorskip("mlx_lm.utils")
import mlx.core as mx  # noqa: E402  # pyright: ignore[reportMissingImports]

TOKENS = list(range(1, 30))
GRID = QuantConfig(group_size=32)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_moe", "qwen2_moe", "mixtral", "olmoe"])
def test_mlx_computes_the_logits_of_the_model_that_was_trained(tmp_path: Path, model_type: str) -> None:
    model = tiny_gguf_model(model_type)
    source = tmp_path / "source"
    model.save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    write_as_published(source / "config.json")
    plain = taken_apart(model, GRID)
    plain = replace(plain, quantized={name: of_few_digits(weight) for name, weight in plain.quantized.items()})
    parts = QuantizedModel.from_model(
        model, source, GRID, dense=plain.dense, quantized=plain.quantized, dtype=plain.dtype
    )
    write_model("mlx", parts, tmp_path / "export")

    mx.set_default_device(mx.cpu)
    loaded, _ = mlx_lm.load_model(tmp_path / "export", strict=True)
    loaded.set_dtype(mx.float32)
    logits = np.array(loaded(mx.array([TOKENS])).astype(mx.float32))[0]
    with torch.no_grad():
        expected = rounded(model, plain).float()(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-3 * np.sqrt(np.square(expected).mean())


def write_as_published(file: Path) -> None:
    """Add what configurations of these models say on the hub, and transformers 5 writes under other names."""
    values = json.loads(file.read_text())
    values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    values["rope_theta"] = values["rope_parameters"]["rope_theta"]
    if "num_local_experts" in values:
        values.setdefault("num_experts", values["num_local_experts"])
    file.write_text(json.dumps(values))
