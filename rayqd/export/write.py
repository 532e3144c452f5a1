"""Write a student, or any quantized model, as an export: the format and --as choose the writer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.data.chat_settings import chat_settings
from rayqd.errors import ConfigError
from rayqd.events import ArmResult
from rayqd.export import bitsandbytes, compressed_tensors, layout_files
from rayqd.export.layouts import check_layout
from rayqd.export.model_card import make_model_card, write_card
from rayqd.export.quantized_model import QuantizedModel
from rayqd.model.student import Student
from rayqd.quant.formats import FORMATS
from rayqd.runs.benchmarks import BenchmarkRow

Kind = Literal["compressed-tensors", "bitsandbytes", "gguf", "gptq", "awq", "mlx"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def default_kind(quant: QuantConfig) -> Kind:
    """Return what `quant.format` is written as unless something else is asked for."""
    return FORMATS[quant.format].container


def parse_kind(name: str) -> Kind:
    """Return the kind called `name`; raises ConfigError, with the nearest right name, at another."""
    for kind in KINDS:
        if kind == name:
            return kind
    near = difflib.get_close_matches(name, KINDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"flag --as={name}: must be one of {', '.join(KINDS)}{hint}")


def export(
    student: Student,
    source: Path,
    config: Config,
    directory: Path,
    *,
    kind: Kind | None = None,
    overwrite: bool = True,
    rows: Sequence[ArmResult] = (),
    command: Literal["distill", "quantize"] = "distill",
) -> int:
    """Write `student` to `directory`, with the tokenizer and chat template of `source`; returns the files' bytes.

    The codes and scales are those of the forward pass. Nothing is quantized a second time. `rows` are the results of
    the run for the model card. Raises StorageError when it cannot be written, and, unless `overwrite`, when
    `directory` is there; ConfigError when `kind` does not hold the grid.
    """
    kind = kind or default_kind(config.quant)
    check_kind(kind, config, student.model.config.model_type)
    model = QuantizedModel.from_student(student, source, config.quant)
    return write(model, config, directory, kind=kind, overwrite=overwrite, rows=rows, command=command)


def update_card(
    directory: Path,
    config: Config,
    rows: Sequence[ArmResult],
    *,
    benchmarks: Sequence[BenchmarkRow] = (),
    command: Literal["distill", "quantize"] = "distill",
    ending: str = "",
) -> None:
    """Put the results, known only after the export was measured, into the card of a run's usual export.

    `ending`: see `rayqd.runs.ending`.
    """
    kind = default_kind(config.quant)
    card = make_model_card(config, kind=kind, rows=rows, benchmarks=benchmarks, command=command, ending=ending)
    write_card(directory, card)


def write(
    model: QuantizedModel,
    config: Config,
    directory: Path,
    *,
    kind: Kind,
    overwrite: bool,
    rows: Sequence[ArmResult] = (),
    command: Literal["distill", "quantize"] = "distill",
) -> int:
    """Write `model` as `kind`, with a model card; `command` is what made it."""
    check_kind(kind, config, model.config.model_type)
    chat_template = chat_settings(config.data).template
    if chat_template is not None and model.tokenizer is not None:
        model.tokenizer.chat_template = chat_template
    card = make_model_card(config, kind=kind, rows=rows, command=command)
    model = replace(model, card=card, chat_template=chat_template)
    if kind == "gguf":
        from rayqd.export.gguf import write_gguf

        return write_gguf(model, directory, overwrite=overwrite)
    if kind in ("gptq", "awq", "mlx"):
        return layout_files.write_model(kind, model, directory, overwrite=overwrite)
    writer = compressed_tensors if kind == "compressed-tensors" else bitsandbytes
    return writer.write_model(model, directory, overwrite=overwrite)


def check_kind(kind: Kind, config: Config, model_type: str) -> None:
    """Raise ConfigError when `kind` has no place for the run's grid."""
    quant = config.quant
    if kind == "gguf":
        from rayqd.export.gguf import check_gguf

        check_gguf(quant, model_type)
    elif kind in ("gptq", "awq", "mlx"):
        check_layout(kind, quant, config.model.dtype)
    elif kind != default_kind(quant):
        formats = " and ".join(form for form, known in FORMATS.items() if known.container == kind)
        raise ConfigError(f"{kind} holds {formats}, and this run is {quant.format}: use --as {default_kind(quant)}")
    elif quant.format == "nvfp4" and config.model.dtype != "bfloat16":
        raise ConfigError(
            f"compressed-tensors unpacks nvfp4 to bfloat16 alone, and this run is {config.model.dtype}: "
            "train with --model.dtype bfloat16"
        )


def weight_bytes(*directories: Path) -> int:
    """Return the bytes of the safetensors files of one checkpoint, or of several."""
    return sum(file.stat().st_size for directory in directories for file in directory.glob("*.safetensors"))


def dense_bits(*directories: Path) -> float:
    """Return the bits of a weight in the files of dense checkpoints, in whatever dtype it is computed."""
    from safetensors import safe_open

    bits = num_weights = 0
    for file in sorted(file for directory in directories for file in directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(name)
                count = math.prod(part.get_shape())
                num_weights += count
                bits += count * int("".join(c for c in part.get_dtype().partition("_")[0] if c.isdigit()))
    return bits / num_weights if num_weights else math.nan
