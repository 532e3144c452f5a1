"""Exports with a rounded output head, as readers that share nothing with rayqd read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from small_models import byte_tokenizer, small_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.export.gguf import FILE_NAME
from rayqd.export.load import load_export, read_quantized_model
from rayqd.export.logits import compute_student_logits
from rayqd.export.verify import compare
from rayqd.export.write import Kind, export, write
from rayqd.model.student import Student

TOKENS = np.arange(3, 40, dtype=np.int32)
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
GROUP = 32


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = small_model("llama", tied=request.param, dtype=torch.float16)
    model.save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def make_student(tiny_config: Any, source: Path, head: str, **quant: Any) -> tuple[Student, Config]:
    settings = {"group_size": GROUP, "init": "rtn", "head": head, **quant}
    config: Config = tiny_config(model={"name": str(source), "dtype": "float16"}, quant=settings)
    return Student.load(source, config), config


def is_tied(source: Path) -> bool:
    return bool(json.loads((source / "config.json").read_text())["tie_word_embeddings"])


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.from_numpy(TOKENS.astype("int64"))[None], use_cache=False).logits[0, :-1].float()


@pytest.mark.parametrize("head", ["int8", "int4"])
def test_transformers_loads_a_compressed_tensors_export_with_the_values_of_the_student(
    head: str, source: Path, tiny_config: Any, tmp_path: Path
) -> None:
    student, config = make_student(tiny_config, source, head)
    export(student, source, config, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="eager").eval()
    found = logits(loaded)
    assert torch.equal(loaded.get_output_embeddings().weight, student.head)
    assert torch.equal(loaded.get_input_embeddings().weight, student.model.get_input_embeddings().weight)
    expected = compute_student_logits(student, TOKENS)
    assert (found - expected).abs().max() <= 2**-9 * expected.abs().max()  # float16 has 11 bits
    result = compare(
        load_export(tmp_path / "export", "float16"), student.exported_layers(), student.dense_tensors(), student.grid
    )
    assert result.equal, result.differing
    stored = load_file(tmp_path / "export" / "model.safetensors")
    described = json.loads((tmp_path / "export" / "config.json").read_text())["quantization_config"]
    if is_tied(source):  # no reader of transformers takes an embedding of codes
        assert not any(name.startswith((HEAD, f"{EMBEDDING}.weight_")) for name in stored)
        assert described["config_groups"].keys() == {"group_0"}
        assert "lm_head" in described["ignore"]
    else:
        bits = {"int8": 8, "int4": 4}[head]
        assert stored[f"{HEAD}.weight_packed"].nbytes == 288 * 64 * bits // 8
        assert described["config_groups"]["head"]["targets"] == [r"re:(.*\.)?lm_head$"]
        assert described["config_groups"]["head"]["weights"]["num_bits"] == bits
        assert not any("lm_head" in entry for entry in described["ignore"])


@pytest.mark.parametrize("head", ["int8", "int4"])
def test_mlx_stores_the_codes_of_the_head_once(head: str, source: Path, tiny_config: Any, tmp_path: Path) -> None:
    """MLX's affine form (documentation of mlx.core.quantize): scale · q + bias, 32 / bits numbers to a uint32."""
    student, config = make_student(tiny_config, source, head)
    export(student, source, config, tmp_path / "export", kind="mlx")
    stored = load_numpy(tmp_path / "export" / "model.safetensors")
    layer = EMBEDDING if is_tied(source) else HEAD
    bits = {"int8": 8, "int4": 4}[head]
    packed = stored[f"{layer}.weight"]
    assert packed.dtype == np.uint32
    codes = packed[:, :, None] >> (np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)) & (2**bits - 1)
    scales, biases = (stored[f"{layer}.{part}"].astype(np.float64) for part in ("scales", "biases"))
    values = codes.reshape(288, -1, GROUP) * scales[:, :, None] + biases[:, :, None]
    assert np.array_equal(values.reshape(288, 64).astype(np.float16), student.head.numpy())
    described = json.loads((tmp_path / "export" / "config.json").read_text())["quantization"]
    assert described[layer] == {"group_size": GROUP, "bits": bits, "mode": "affine"}
    assert described["bits"] == 4
    assert (f"{EMBEDDING}.scales" in stored) == is_tied(source)
    assert torch.allclose(logits(load_export(tmp_path / "export", "float16", attention="eager")),
                          compute_student_logits(student, TOKENS), atol=2**-9)  # fmt: skip


@pytest.mark.parametrize("head", ["int8", "int4"])
def test_gguf_stores_the_codes_of_the_head_once(head: str, source: Path, tiny_config: Any, tmp_path: Path) -> None:
    student, config = make_student(tiny_config, source, head)
    export(student, source, config, tmp_path / "export", kind="gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "export" / FILE_NAME).tensors}
    name = "token_embd.weight" if is_tied(source) else "output.weight"
    kind = {"int8": gguf.GGMLQuantizationType.Q8_0, "int4": gguf.GGMLQuantizationType.Q4_0}[head]
    assert tensors[name].tensor_type == kind
    values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
    assert np.array_equal(values.astype(np.float16), student.head.numpy())
    assert ("output.weight" in tensors) != is_tied(source)
    loaded = load_export(tmp_path / "export", "float16", attention="eager")
    assert torch.allclose(logits(loaded), compute_student_logits(student, TOKENS), atol=2**-9)


@pytest.mark.parametrize(("kind", "head"), [("gptq", "int8"), ("gptq", "int4"), ("awq", "int4")])
def test_gptq_and_awq_say_that_the_head_is_of_codes(
    kind: Kind, head: str, source: Path, tiny_config: Any, tmp_path: Path
) -> None:
    student, config = make_student(tiny_config, source, head)
    export(student, source, config, tmp_path / "export", kind=kind)
    stored = load_file(tmp_path / "export" / "model.safetensors")
    described = json.loads((tmp_path / "export" / "config.json").read_text())["quantization_config"]
    assert bool(described.get("lm_head")) != is_tied(source)
    assert (f"{HEAD}.qweight" in stored) != is_tied(source)
    loaded = load_export(tmp_path / "export", "float16", attention="eager")
    assert torch.equal(loaded.get_output_embeddings().weight, student.head)
    assert torch.allclose(logits(loaded), compute_student_logits(student, TOKENS), atol=2**-9)
    if kind == "gptq" and not is_tied(source):
        bits = {"int8": 8, "int4": 4}[head]
        assert described.get("dynamic") == ({"+:^lm_head$": {"bits": 8}} if bits == 8 else None)
        words = stored[f"{HEAD}.qweight"].numpy().view(np.uint32)
        zeros = stored[f"{HEAD}.qzeros"].numpy().view(np.uint32)
        scales = stored[f"{HEAD}.scales"].float().numpy()
        per_word, mask = 32 // bits, 2**bits - 1
        for k in range(0, 64, 7):  # GPTQModel's dequantization, qlinear/torch.py: inputs first, zero points less one
            for n in range(0, 288, 11):
                code = int(words[k // per_word, n]) >> bits * (k % per_word) & mask
                zero = (int(zeros[k // GROUP, n // per_word]) >> bits * (n % per_word) & mask) + 1
                assert np.float16((code - zero) * scales[k // GROUP, n]) == student.head[n, k].item()


def test_an_asymmetric_body_and_a_symmetric_head_share_a_gptq_file(
    source: Path, tiny_config: Any, tmp_path: Path
) -> None:
    student, config = make_student(tiny_config, source, "int8", rule="asymmetric")
    export(student, source, config, tmp_path / "export", kind="gptq")
    loaded = load_export(tmp_path / "export", "float16", attention="eager")
    assert torch.equal(loaded.get_output_embeddings().weight, student.head)
    assert torch.allclose(logits(loaded), compute_student_logits(student, TOKENS), atol=2**-9)


def test_awq_has_no_place_for_eight_bits(tmp_path: Path, tiny_config: Any) -> None:
    small_model("llama", tied=False, dtype=torch.float16).save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    student, config = make_student(tiny_config, tmp_path / "source", "int8")
    message = "awq has codes of 4 bits alone, and lm_head has 8: use --as gptq or compressed-tensors"
    with pytest.raises(ModelError, match=message):
        export(student, tmp_path / "source", config, tmp_path / "export", kind="awq")


@pytest.mark.parametrize("kind", ["mlx", "gguf"])
def test_codes_are_found_again_for_an_export_made_of_an_export(
    kind: Kind, source: Path, tiny_config: Any, tmp_path: Path
) -> None:
    student, config = make_student(tiny_config, source, "int4")
    export(student, source, config, tmp_path / "export")
    export(student, source, config, tmp_path / "direct", kind=kind)
    parts = read_quantized_model(tmp_path / "export", config)
    write(parts, config, tmp_path / "again", kind=kind, overwrite=False)
    first, second = (
        load_export(tmp_path / name, "float16", attention="eager").state_dict() for name in ("direct", "again")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).glob("model*")) for n in ("direct", "again")]
    assert abs(sizes[0] - sizes[1]) < 2000  # names and settings beside the tensors
