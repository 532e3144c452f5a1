"""Weights of an export that are not those that were written are refused by whoever reads them, and others are not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model, taken_apart

from rayqd.commands.generate import generate
from rayqd.config.sections import QuantConfig
from rayqd.errors import ModelError
from rayqd.export.compressed_tensors import write_model
from rayqd.export.destination import EXPORT_CHECKSUMS, check_export, seal_export
from rayqd.export.load import load_export

SIGNED = QuantConfig(group_size=32, rule="signed")
WHAT_TO_DO = (
    "copy it again from where it is whole, or make it again (`rayqd export RUN --overwrite`; `rayqd quantize` for a "
    "run of that). If you changed its weights yourself, remove rayqd-checksums.json"
)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    write_model(taken_apart(small_model("llama", tied=True), SIGNED), tmp_path / "export", max_shard_bytes=40_000)
    return tmp_path / "export"


def flip(file: Path, draw: random.Random) -> bytes:
    """Flip one bit, and return what was there."""
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    file.write_bytes(flipped)
    return whole


def test_a_flipped_bit_anywhere_in_the_weights_is_refused_with_the_file_and_what_to_do(export: Path) -> None:
    check_export(export)
    draw = random.Random(0)
    files = sorted(export.glob("*.safetensors"))
    assert len(files) > 1
    for file in [*files * 10, export / EXPORT_CHECKSUMS]:
        whole = flip(file, draw)
        with pytest.raises(ModelError) as refused:
            check_export(export)
        assert str(refused.value).startswith(f"{export} is damaged: {file.name} ")
        assert str(refused.value).endswith(f"; {WHAT_TO_DO}")
        file.write_bytes(whole)
    check_export(export)


def test_evaluation_and_generation_ask_before_they_load_anything(export: Path, tiny_config: Any) -> None:
    flip(min(export.glob("*.safetensors")), random.Random(1))
    with pytest.raises(ModelError, match="export is damaged: model-00001"):
        load_export(export, "bfloat16")
    config = tiny_config()
    with pytest.raises(ModelError, match="export is damaged: model-00001"):
        generate(config, model=str(export), make_engine=lambda: pytest.fail("an engine was made"))


def test_texts_of_an_export_may_be_changed(export: Path) -> None:
    (export / "generation_config.json").write_text('{"temperature": 0.5}')
    (export / "README.md").write_text("mine")
    check_export(export)


def test_an_export_without_checksums_is_read_as_it_is(export: Path) -> None:
    expected = load_export(export, "bfloat16").state_dict()
    (export / EXPORT_CHECKSUMS).unlink()
    read = load_export(export, "bfloat16").state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)


def test_a_gguf_may_have_another_name_and_no_other_content(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_0.gguf").write_bytes(b"GGUF and more")
    seal_export(tmp_path)
    (tmp_path / "model-Q4_0.gguf").rename(tmp_path / "mine.gguf")
    check_export(tmp_path)
    (tmp_path / "mine.gguf").write_bytes(b"GGUF and mere")
    with pytest.raises(ModelError, match=r"mine\.gguf is not what was written"):
        check_export(tmp_path)
    (tmp_path / "mine.gguf").unlink()
    with pytest.raises(ModelError, match=r"model-Q4_0\.gguf is missing"):
        check_export(tmp_path)
