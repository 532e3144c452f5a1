"""Which of transformers' automatic classes loads a model, and whether a configuration is one that can be quantized."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_BASE_MODEL = re.compile(r"^base_model:\s*(?:-\s*)?[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)


def auto_class(config: PreTrainedConfig) -> Any:
    """Return AutoModelForCausalLM, or the class of models that read images and write text, for `config`.

    Raises ModelError where it is of neither kind.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) in cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING):
        return AutoModelForCausalLM
    if type(config) in cast(Any, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING) and config.get_text_config() is not config:
        return AutoModelForImageTextToText
    name = (config.architectures or [type(config).__name__])[0]
    raise ModelError(f"{name} (model_type {config.model_type}) is no causal language model: model.name must be one")


def check_config(directory: Path) -> None:
    """Raise ModelError where config.json is of a model that is quantized already, or of none of transformers'."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{directory / 'config.json'} is no JSON: {error}; download it again") from error
    _check_not_quantized(values, directory)
    _check_known(values, directory)
    from transformers import AutoConfig

    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(directory)
    except Exception as error:  # whatever its checks raise on values that do not go together
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{directory / 'config.json'} describes no model: {type(error).__name__}: {reason}") from error
    auto_class(config)


def _check_not_quantized(values: Any, directory: Path) -> None:
    parts = [values, *(part for part in values.values() if isinstance(part, dict))]
    found = next((part["quantization_config"] for part in parts if part.get("quantization_config")), None)
    if found is None:
        return
    method = found.get("quant_method", "an unnamed method")
    raise ModelError(
        f"{directory} is quantized already ({method}), and a second rounding would cost again: give model.name the "
        f"16-bit model that it was made from{_base_model(values, directory)}"
    )


def _base_model(values: Any, directory: Path) -> str:
    """Return `, some/model` where card or config.json name the model that this one was made from."""
    card = directory / "README.md"
    match = _BASE_MODEL.search(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    origin = values.get("_name_or_path")
    name = match[1] if match else origin if isinstance(origin, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else ""
    return f", {name}" if name else ""


def _check_known(values: Any, directory: Path) -> None:
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = values.get("model_type")
    if kind in cast(Any, CONFIG_MAPPING):
        return
    what = f"knows no model_type {kind!r}" if kind else "needs a model_type, and there is none"
    raise ModelError(f"{directory / 'config.json'}: transformers {__version__} {what}: give model.name another model")
