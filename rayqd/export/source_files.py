"""What an export takes from its source as it is: config.json but for what quantization changes, and the other files.

transformers' own writers say the same things in another way (rotary settings, the tokenizer's class), which other
readers and older versions then do not find; and they refuse generation settings that every reader accepts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import JsonValue

CONFIG_NAME = "config.json"
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
_TEMPLATES = "additional_chat_templates"  # as transformers calls the directory of several
_REPLACED = (CONFIG_NAME, "*.index.json", "params.json")  # params.json: the sizes of Mistral's own format's weights


def copy_source_files(source: Path, directory: Path) -> None:
    """Copy what `source` has beside config.json and weights, byte for byte: tokenizer, templates, generation, licence.

    Raises OSError.
    """
    for file in _files_to_copy(source):
        target = directory / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def read_config(source: Path) -> dict[str, JsonValue]:
    """Return config.json of `source`. Raises OSError and ValueError."""
    return json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))


def make_config(
    config: Mapping[str, JsonValue],
    quantization_config: Mapping[str, JsonValue],
    *,
    dtype: torch.dtype,
    architecture: str,
    is_tied: bool,
) -> dict[str, JsonValue]:
    """Return the source's `config` with `quantization_config`, and else changed only where it would be untrue.

    `dtype` is that of the tensors that are not quantized, `architecture` the class of the model, `is_tied` whether its
    head is its embedding.
    """
    changed = dict(config)
    text_config = changed.get("text_config")
    if isinstance(text_config, dict):
        changed["text_config"] = _with_dtype(text_config, dtype)
    changed = _with_dtype(changed, dtype)
    if not {"dtype", "torch_dtype"} & changed.keys():
        changed["torch_dtype"] = _name(dtype)  # under the name that every version of transformers reads
    changed.setdefault("architectures", [architecture])  # vLLM chooses its model by it
    if not is_tied:
        _untie(changed)
    return {**changed, "quantization_config": dict(quantization_config)}


def write_config(directory: Path, config: Mapping[str, JsonValue]) -> None:
    """Write config.json, its keys in the order of `config`."""
    (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _files_to_copy(source: Path) -> Iterator[Path]:
    for file in sorted(source.iterdir()):
        wanted = any(file.match(pattern) for pattern in _COPIED)
        if file.is_file() and wanted and not any(file.match(pattern) for pattern in _REPLACED):
            yield file
    yield from sorted((source / _TEMPLATES).glob("*.jinja"))


def _with_dtype(config: Mapping[str, JsonValue], dtype: torch.dtype) -> dict[str, JsonValue]:
    """Name `dtype` under those keys that are there."""
    named: dict[str, JsonValue] = dict.fromkeys({"dtype", "torch_dtype"} & config.keys(), _name(dtype))
    return {**config, **named}


def _untie(config: dict[str, JsonValue]) -> None:
    """Have no part of `config` say that the head is the embedding; transformers takes a missing key for a yes."""
    text_config = config.get("text_config")
    if isinstance(text_config, dict) and text_config.get("tie_word_embeddings"):
        config["text_config"] = {**text_config, "tie_word_embeddings": False}
    config["tie_word_embeddings"] = False


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
