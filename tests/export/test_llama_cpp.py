"""llama.cpp's logits beside transformers', for every architecture; skipped without llama-cpp-python.

    pip install llama-cpp-python && pytest tests/export/test_llama_cpp.py

llama.cpp rounds activations to 8 bits where weights are Q4_0, so the same tensors are given to it in float32, under the
file's own metadata.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_models import tiny_gguf_model
from sentencepiece_tokenizers import sentencepiece_tokenizer
from small_models import byte_tokenizer, of_few_digits, rounded, small_model, taken_apart
from transformers import PreTrainedTokenizerFast

from rayqd.config.sections import QuantConfig
from rayqd.export.gguf import FILE_NAME, write_gguf
from rayqd.export.gguf_architectures import ARCHITECTURES

llama_cpp = pytest.importorskip("llama_cpp")

TOKENS = np.arange(1, 49)
TEXTS = ["the other thing", "hello  there, all other in the", "Grüße an the Welt", " in", "ththe erother", "x\n\nthe"]
MAX_DIFFERENCE = 1e-3  # of the logits' own size; llama.cpp has tables of 16 bits for some functions
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = [
    *((name, {}) for name in ARCHITECTURES),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("stablelm", {"use_qkv_bias": True}),
    ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
]


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_llama_cpp_computes_the_logits_of_the_model_that_was_trained(
    tmp_path: Path, model_type: str, changes: dict[str, object]
) -> None:
    model = tiny_gguf_model(model_type, **changes)
    parts = taken_apart(model, QuantConfig(group_size=32))
    parts = replace(parts, quantized={name: of_few_digits(weight) for name, weight in parts.quantized.items()})
    write_gguf(parts, tmp_path / "export")
    write_float32(tmp_path / "export" / FILE_NAME, tmp_path / "float32.gguf")
    expected = rounded(model, parts).float()
    with torch.no_grad():
        logits = expected(torch.from_numpy(TOKENS)[None]).logits[0].double().numpy()
    assert relative(compute_logits(tmp_path / "float32.gguf") - logits, logits) < MAX_DIFFERENCE


@pytest.mark.parametrize(
    "tokenizer",
    [
        sentencepiece_tokenizer(),
        sentencepiece_tokenizer(adds_space=False),
        byte_tokenizer(),
        byte_tokenizer(split="qwen2"),
    ],
)
def test_llama_cpp_gives_the_ids_of_the_tokenizer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small_model("llama", tied=True, vocab_size=320)
    write_gguf(taken_apart(model, QuantConfig(group_size=32), tokenizer=tokenizer), tmp_path / "export")
    file = str(tmp_path / "export" / FILE_NAME)
    vocabulary = llama_cpp.Llama(file, vocab_only=True, n_gpu_layers=0, verbose=False)
    for text in TEXTS:
        ids = vocabulary.tokenize(text.encode(), add_bos=False, special=False)
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"], text


def write_float32(source: Path, target: Path) -> None:
    """Write the file again with its metadata as it is and all of its tensors in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(
                field.name, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None
            )
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compute_logits(file: Path) -> np.ndarray:
    """Compute the logits of `TOKENS`, [T, V]."""
    model = llama_cpp.Llama(str(file), n_ctx=64, n_batch=64, n_gpu_layers=0, logits_all=True, verbose=False)
    model.eval(TOKENS.tolist())
    return np.array(model.scores[: len(TOKENS)], dtype=np.float64)


def relative(difference: np.ndarray, logits: np.ndarray) -> float:
    """Return the RMS of `difference` over that of the logits, without what the softmax does not see: a row's mean."""
    parts = [values - values.mean(axis=-1, keepdims=True) for values in (difference, logits)]
    rms, size = (np.sqrt(np.square(part).mean()) for part in parts)
    return float(rms / size)
