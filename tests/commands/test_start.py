"""What a run does before it starts Ray is short: nothing large is imported by then, and no model unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("peft", "ray.train", "torch", "transformers.modeling_utils", "vllm")
DRIVER = f"""
import sys
from rayqd.commands import distill
from rayqd.config import load_config

def connect(*args):
    print("loaded", [name for name in {HEAVY} if name in sys.modules])
    sys.exit()

distill.connect = connect
distill.distill(load_config(sys.argv[1:]))
"""
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


@pytest.mark.slow
def test_ray_starts_before_anything_large_is_imported_and_before_the_model_is_unpacked(tmp_path: Path) -> None:
    environment = os.environ | {"RAYQD_CACHE": str(tmp_path / "cache")}
    words = [f"@{QUICKSTART}", "--runs_dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *words], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert not (tmp_path / "cache").exists()
