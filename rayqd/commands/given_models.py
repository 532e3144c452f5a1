"""Models that others made, or an earlier run: found, and refused in a line where they cannot be measured here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayqd.checksums import digest_file
from rayqd.commands.evaluated_models import directory_of
from rayqd.commands.given_gguf import GGUFModel, find_gguf, read_gguf
from rayqd.config import Config
from rayqd.config.missing import describe_missing
from rayqd.console.quiet import quiet_libraries
from rayqd.driver.preflight import describe_other_vocabulary
from rayqd.driver.weights_check import check_weights
from rayqd.errors import ModelError
from rayqd.export.foreign_config import OTHERWISE, check_method, is_packed
from rayqd.export.foreign_layouts import check_packed
from rayqd.model.load import context_length, load_meta_model, load_tokenizer
from rayqd.model.source import local_directory, student_directory, teacher_directories
from rayqd.model.source_weights import match_names, read_stored_tensors
from rayqd.runs.paths import CHECKPOINTS, EXPORT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "tokenizer_config.json")
_ADAPTER = ("adapter_config.json", "adapter_model.")
_MAX_REASON = 200  # characters of what a library says


@cache
def find_given_model(name: str, *, trusts_code: bool = False) -> Path:
    """Return the directory of the model that `name` means: a directory, a run of rayqd's, or a name on the hub.

    Raises ModelError where there is none, or more than one model. `trusts_code`: code of its own may be run.
    """
    directory = _find_directory(name, trusts_code)
    _check_no_adapter(directory)
    find_gguf(directory)
    return directory


def _find_directory(name: str, trusts_code: bool) -> Path:
    path = Path(name).expanduser().absolute()
    if not path.exists():
        return _find_on_hub(name, path, trusts_code)
    if path.is_file():
        raise ModelError(f"{path} is a file, and a model is a directory of several")
    _check_no_adapter(path)  # which may lie there alone
    if (path / "student.safetensors").is_file():
        raise ModelError(f"{path} is a checkpoint of training: rayqd export makes a model of its run")
    if (path / CHECKPOINTS).is_dir() and not (path / EXPORT).is_dir():
        raise ModelError(f"{path} has no export yet: rayqd export {name} makes one")
    inside = [file.parent for file in sorted(path.glob("*/config.json"))]
    if inside and not (path / EXPORT).is_dir() and not (path / "config.json").exists():
        raise ModelError(f"{path} is no model's directory: did you mean {', '.join(map(str, inside[:3]))}?")
    directory = directory_of(path, trusts_code=trusts_code)
    if any(directory.glob("*.gguf")):
        return directory
    return local_directory(str(directory), trusts_code=trusts_code)  # whose files are whole


def check_given_model(directory: Path, config: Config) -> None:
    """Check as far as files tell that the model in `directory` can be measured against the teacher of `config`.

    Raises ModelError where it is the teacher itself, is damaged or in a format that nothing here loads, has another
    vocabulary, or takes shorter rows.
    """
    for teacher in teacher_directories(config):
        if _has_same_weights(directory, teacher):
            raise ModelError(f"{directory} is the teacher itself, and its KL is 0: the kind teacher stands for it")
    file = find_gguf(directory)
    gguf = read_gguf(file) if file else None  # its own tokenizer and configuration
    if gguf is None:
        _check_format(directory, _describe_model(directory))
    _check_vocabulary(directory, config, gguf)
    most = min(config.data.max_length, context_length(student_directory(config)))
    if (takes := gguf.context_length if gguf else context_length(directory)) < most:
        raise ModelError(
            f"{directory} takes {takes:,} tokens, and held-out rows may have {most:,}: lower data.max_length, for all"
        )


def _check_no_adapter(directory: Path) -> None:
    found = sorted(file.name for file in directory.glob("adapter_*") if file.name.startswith(_ADAPTER))
    if found:
        raise ModelError(
            f"{directory} has an adapter ({found[0]}), which some that load it apply and others leave out: merge it "
            "first, with peft's merge_and_unload or Unsloth's merged_16bit, and name the merged model's directory"
        )


def read_dtype(directory: Path) -> str | None:
    """Return the dtype that config.json names, in which some formats compute whatever they are asked."""
    file = directory / "config.json"
    values = json.loads(file.read_text()) if file.is_file() else {}
    return values.get("dtype") or values.get("torch_dtype")


def _find_on_hub(name: str, path: Path, trusts_code: bool) -> Path:
    if not _HUB_ID.fullmatch(name):
        raise ModelError(describe_missing(path))
    try:
        return local_directory(name, trusts_code=trusts_code)
    except ModelError as error:
        if "could not be downloaded" not in str(error):
            raise
        raise ModelError("is no directory here, and could not be downloaded: check the name, or the network") from error


def _has_same_weights(one: Path, other: Path) -> bool:
    if one.resolve() == other.resolve():
        return True
    files, others = ({file.name: file for file in each.glob("*.safetensors")} for each in (one, other))
    sizes, other_sizes = ({name: f.stat().st_size for name, f in each.items()} for each in (files, others))
    if not files or sizes != other_sizes:
        return False
    return all(digest_file(file) == digest_file(others[name]) for name, file in files.items())


def _describe_model(directory: Path) -> PreTrainedModel:
    """Build the model without weights. Raises ModelError where config.json describes none."""
    try:
        return load_meta_model(directory)
    except ModelError:
        raise
    except Exception as error:  # whatever its checks raise
        raise ModelError(f"{directory / 'config.json'} describes no model: {_in_short(error)}") from error


def _check_format(directory: Path, model: PreTrainedModel) -> None:
    described = _find_quantization(directory)
    if described is None:
        check_weights(model, directory)
        return
    if is_packed(directory):
        check_packed(directory, model)
    else:
        _check_loads(directory, described)
    _check_complete(directory, model)


def _find_quantization(directory: Path) -> Mapping[str, Any] | None:
    """Return what config.json says of how the weights are quantized; None where they are not."""
    values = json.loads((directory / "config.json").read_text())
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    names = ("quantization_config", "quantization")
    return next((part[name] for part in parts for name in names if isinstance(part.get(name), dict)), None)


def _check_loads(directory: Path, described: Mapping[str, Any]) -> None:
    """Raise ModelError where transformers, as it is here, does not load such weights, with what would."""
    from transformers.quantizers.auto import AutoHfQuantizer

    check_method(described, directory)
    try:
        with quiet_libraries():
            quantizer: Any = AutoHfQuantizer.from_config(dict(described), pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # a package, a version or a GPU that it needs
        method = described.get("quant_method", "bitsandbytes")
        raise ModelError(
            f"{directory} is {method}, which cannot be loaded here: {_in_short(error)}; or {OTHERWISE}"
        ) from error


def _check_complete(directory: Path, model: PreTrainedModel) -> None:
    """Raise ModelError where a layer has no tensor at all in the files: transformers would make its weights up."""
    stored = read_stored_tensors(directory)
    modules = {name.rpartition(".")[0] for name in match_names(model, stored).missing}
    missing = [module for module in modules if not any(name.startswith(f"{module}.") for name in stored)]
    if missing:
        raise ModelError(
            f"{directory} has no weights of {min(missing)}, which {type(model).__name__} needs: it is not all of the "
            "model; download or write it again"
        )


def _check_vocabulary(directory: Path, config: Config, gguf: GGUFModel | None) -> None:
    from transformers import AutoConfig

    tokenizer = load_tokenizer(student_directory(config))
    if difference := gguf.describe_other_tokens(tokenizer) if gguf else _describe_tokenizer(directory, tokenizer):
        raise ModelError(
            f"{directory} and {config.model.name} have different tokenizers ({difference}): the teacher's tokens "
            "mean something else to it; name a model that was made from this one"
        )
    num_ids = gguf.num_ids if gguf else int(AutoConfig.from_pretrained(directory).get_text_config().vocab_size)
    if num_ids < len(tokenizer):
        raise ModelError(
            f"{directory} has an output head of {num_ids} ids, and the tokenizer of {config.model.name} has "
            f"{len(tokenizer)} tokens: name a model that was made from this one"
        )


def _describe_tokenizer(directory: Path, expected: Any) -> str:
    """Say in what the tokenizer in `directory`, if it has one, differs from the teacher's."""
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return ""
    try:
        own = load_tokenizer(directory)
    except Exception as error:  # whatever a damaged file or a missing package raises
        raise ModelError(f"the tokenizer of {directory} cannot be read: {_in_short(error)}") from error
    return describe_other_vocabulary(expected, own)


def _in_short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:_MAX_REASON]}"
