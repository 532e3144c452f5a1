"""A run's directory with one checkpoint, without the run; and `rayqd export` of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from rayqd.commands.export import export_run
from rayqd.config import Config, to_toml
from rayqd.export.digest import digest_layers
from rayqd.learner.checkpoint import DIGESTS, Checkpoints
from rayqd.model.student import Student
from tests.export.small_models import byte_tokenizer, small_model

FORMATS: dict[str, dict[str, Any]] = {
    "int4": {"group_size": 32, "init": "rtn"},
    "asymmetric": {"group_size": 32, "rule": "asymmetric", "init": "rtn"},
    "nvfp4": {"format": "nvfp4"},
    "nf4": {"format": "nf4", "group_size": 32, "double_quant": True},
    "fp4": {"format": "fp4", "group_size": 32},
}


def make_trained_run(
    tmp_path: Path, form: str = "int4", *, kind: str = "lora", checkpoint: bool = True
) -> tuple[Path, Config]:
    """Leave a run with one checkpoint of a student that is far from where it started."""
    source = tmp_path / "model"
    small_model("llama", tied=True, max_position_embeddings=256, bos_token_id=None).save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    rows = [{"prompt": f"say the {i}", "completion": "the " * (9 + i)} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Config.model_validate(
        {
            "name": "run",
            "runs_dir": tmp_path / "runs",
            "model": {"name": str(source)},
            "quant": FORMATS[form],
            "adapter": {"kind": kind, "rank": 4},
            "data": {"source": str(tmp_path / "rows.jsonl"), "max_length": 128, "min_room": 1},
            "eval": {"num_rows": 3},
        }
    )
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.toml").write_text(to_toml(config))
    if checkpoint:
        student = Student.load(source, config)
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        tensors = {"student": student.state_dict(), DIGESTS: digest_layers(student)}
        Checkpoints(config.run_dir / "checkpoints", 2).save(5, tensors)
    return config.run_dir, config


def run(run_dir: Path, config: Config, **options: Any) -> tuple[int, str]:
    """Exit code and what the terminal shows."""
    screen = io.StringIO()
    code = export_run(run_dir, config, console=Console(file=screen, width=200), **options)
    return code, screen.getvalue()


def verdict(run_dir: Path, export: str = "export") -> dict[str, Any]:
    found = json.loads((run_dir / "verify.json").read_text())[export]
    return {**found, "checks": {check["name"]: check for check in found["checks"]}}


def flip_a_byte(file: Path, tensor: str) -> None:
    tensors = load_file(file)
    flat = tensors[tensor].view(torch.uint8).reshape(-1)
    flat[3] ^= 0x10
    save_file(tensors, file, metadata={"format": "pt"})
