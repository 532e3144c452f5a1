"""Models that bring code of their own (`auto_map`): refused unless trusted, and then known to transformers' classes.

The classes are registered once a process, by model_type, as transformers has packages do; whatever loads a
configuration, a model or an export afterwards needs no word of it. What transformers has a class for is run by that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError

_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_MODELS = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
_TRUSTED: dict[Path, dict[str, bytes]] = {}  # the code files of directories that this process trusts, by name


def admit_remote_code(directory: Path, *, trusts: bool) -> None:
    """Check that the checkpoint in `directory` needs no code of its own, or with `trusts` make it known.

    Raises ModelError, naming the setting, where it is needed and not trusted, and where it does not load.
    """
    files = find_remote_code(directory)
    if not files:
        return
    if not trusts:
        raise ModelError(
            f"{directory} is run by code of its own ({', '.join(files)}), which could do whatever you can: read it, "
            "and set model.trust_remote_code = true, or give model.name a copy in transformers' own format"
        )
    if is_trusted(directory):
        return
    try:
        with quiet_libraries():
            _register(directory)
    except Exception as error:  # whatever that code raises
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{directory}: its own code does not load: {type(error).__name__}: {reason}") from error
    _TRUSTED[directory.resolve()] = _code(directory)


def find_remote_code(directory: Path) -> list[str]:
    """Return the files of code without which transformers does not load the checkpoint in `directory`."""
    values, tokenizer = _read(directory / _CONFIG), _read(directory / _TOKENIZER_CONFIG)
    classes = [*_classes(values)] if _needs_code(values) else []
    if _needs_tokenizer_code(tokenizer, values):
        classes += _classes(tokenizer)
    return sorted({f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in classes})


def is_trusted(directory: Path) -> bool:
    """Return whether all code in `directory` is that of a checkpoint which was admitted in this process."""
    code = _code(directory)
    return any(code.items() <= trusted.items() for trusted in _TRUSTED.values()) if code else False


def _needs_code(values: dict[str, Any]) -> bool:
    from transformers.models.auto import configuration_auto

    own: dict[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]  # without what is registered
    return values.get("model_type") not in own and bool(values.get("auto_map"))


def _needs_tokenizer_code(tokenizer: dict[str, Any], values: dict[str, Any]) -> bool:
    """Return whether the tokenizer has a class of its own that transformers does not know."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    if not _classes(tokenizer) or values.get("model_type") in TOKENIZER_MAPPING_NAMES:
        return False
    name = str(tokenizer.get("tokenizer_class") or "")
    return all(tokenizer_class_from_name(each) is None for each in (name, f"{name}Fast"))


def _register(directory: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    values = _read(directory / _CONFIG)
    if not _needs_code(values):
        return
    auto_map = cast("dict[str, str]", values["auto_map"])
    if "AutoConfig" not in auto_map or not (models := [name for name in _MODELS if name in auto_map]):
        raise ValueError(f"auto_map names no {'configuration' if 'AutoConfig' not in auto_map else 'language model'}")

    def load(name: str) -> Any:
        source, _, reference = auto_map[name].rpartition("--")  # "other/repository--file.Class"
        return cast(Any, get_class_from_dynamic_module)(reference, source or str(directory))

    config_class = load("AutoConfig")
    cast(Any, AutoConfig).register(config_class.model_type, config_class, exist_ok=True)
    for name in models:
        kind: Any = AutoModelForCausalLM if name == "AutoModelForCausalLM" else AutoModelForImageTextToText
        kind.register(config_class, load(name), exist_ok=True)


def _classes(values: dict[str, Any]) -> list[str]:
    """Return the classes that `auto_map` names, `file.Class`; a tokenizer's may be a pair of which one is None."""
    auto_map: Any = values.get("auto_map") or {}
    entries: list[Any] = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]  # pyright: ignore
    flat = [each for entry in entries for each in (entry if isinstance(entry, list) else [entry])]  # pyright: ignore
    return [str(each) for each in flat if each]


def _code(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.glob("*.py")}


def _read(file: Path) -> dict[str, Any]:
    """Return a JSON file's object; none where it is missing or none, which others say."""
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", values) if isinstance(values, dict) else {}
