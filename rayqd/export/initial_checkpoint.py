"""Version 0 of the student on disk: the model rounded to nearest, in the format of the export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rayqd.config import Config
from rayqd.export.compressed_tensors import write_model
from rayqd.export.quantized_model import QuantizedModel
from rayqd.model.load import load_model, torch_dtype
from rayqd.model.rounded_head import round_head
from rayqd.model.source import cache_dir
from rayqd.quant import make_grid, quantizable_layers


def make_initial_checkpoint(directory: Path, config: Config) -> Path:
    """Write the round-to-nearest checkpoint of the model in `directory`, once a machine; return where it is cached."""
    target = initial_directory(directory, config, "packed")
    if target.is_dir():
        return target
    grid = make_grid(config.quant, torch_dtype(config.model.dtype))
    model = load_model(directory, config.model.dtype)
    round_head(model, config.quant, grid.dtype)  # which the engine has as values, and keeps
    linears = quantizable_layers(model, config.quant)
    target.parent.mkdir(parents=True, exist_ok=True)
    quantized = {name: grid.quantize(linear.weight, name=name) for name, linear in linears.items()}
    parts = QuantizedModel.from_model(
        model, directory, config.quant, dense=model.state_dict(), quantized=quantized, dtype=grid.dtype
    )
    write_model(parts, target)
    return target


def initial_directory(directory: Path, config: Config, form: str) -> Path:
    """Return where what an engine starts from is cached, of the model in `directory`; `form` tells kinds apart."""
    return cache_dir() / "initial" / f"{_fingerprint(directory, config)}-{form}"


def _fingerprint(directory: Path, config: Config) -> str:
    files = sorted(directory.glob("*"))
    identity = {
        "files": [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()],
        "directory": str(directory),
        "dtype": config.model.dtype,
        "quant": config.quant.model_dump(),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
