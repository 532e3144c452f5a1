"""The trained student as a checkpoint for vLLM and transformers."""

from __future__ import annotations

from pathlib import Path

from rayqd.config import Config
from rayqd.export.compressed_tensors import write_checkpoint
from rayqd.model.load import load_tokenizer
from rayqd.model.student import Student


def export(student: Student, source: Path, config: Config, directory: Path) -> int:
    """Write `student` to `directory`, with the tokenizer and chat template of `source`; returns the weights' bytes.

    The codes and scales are those of the forward pass. Nothing is quantized a second time.
    """
    return write_checkpoint(
        config=student.model.config,
        generation_config=student.model.generation_config,
        dense=student.dense(),
        quantized=dict(student.quantized()),
        quant=config.quant,
        tokenizer=load_tokenizer(source),
        directory=directory,
    )


def weight_bytes(directory: Path) -> int:
    """Bytes of a checkpoint's safetensors files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
