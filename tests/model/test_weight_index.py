"""An index names files of its own directory, and counts as transformers counts it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rayqd.errors import ModelError
from rayqd.model.source import local_directory
from rayqd.model.source_weights import weight_files
from rayqd.model.weight_index import INDEX


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model, its weights in one shard that an index names."""
    directory = tmp_path / "copy"
    shutil.copytree(tiny_model, directory)
    (directory / "model.safetensors").rename(directory / "part-1.safetensors")
    write_index(directory, "part-1.safetensors")
    return directory


def write_index(directory: Path, file_name: object) -> None:
    names = load_file(directory / "part-1.safetensors")
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file_name)}))


def test_files_that_lie_elsewhere_are_refused_though_they_are_whole(copy: Path, tiny_model: Path) -> None:
    assert local_directory(str(copy)) == copy
    (copy / "in").mkdir()
    shutil.copy(copy / "part-1.safetensors", copy / "in")
    elsewhere = "../" * len(copy.parts) + str(tiny_model / "model.safetensors").lstrip("/")
    assert (copy / elsewhere).is_file()
    for name in (elsewhere, str(tiny_model / "model.safetensors"), "in/part-1.safetensors", "..", "part-1.bin", "", 3):
        write_index(copy, name)
        with pytest.raises(ModelError, match=r"index\.json names .* which is no \.safetensors file of this directory"):
            local_directory(str(copy))
        with pytest.raises(ModelError, match="which is no"):
            weight_files(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_named(copy: Path, text: str) -> None:
    (copy / INDEX).write_text(text)
    with pytest.raises(ModelError, match=rf"{INDEX} is damaged \(\w+\): download the model again"):
        local_directory(str(copy))


def test_of_one_file_and_an_index_what_transformers_loads_counts(copy: Path) -> None:
    assert weight_files(copy) == [copy / "part-1.safetensors"]
    weights = load_file(copy / "part-1.safetensors")
    name = "model.norm.weight"
    save_file({**weights, name: weights[name] + 1}, copy / "model.safetensors", {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32).state_dict()[name]
    (file,) = weight_files(copy)
    assert torch.equal(loaded, load_file(file)[name].float())
    assert not torch.equal(loaded, weights[name].float())
