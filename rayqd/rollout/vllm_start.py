"""What this process prepares before vLLM starts in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast


def import_model_class(checkpoint: Path) -> None:
    """Import vLLM's class of the model, which this process is to run.

    vLLM would start another process to look at it, 15 to 20 s long, so that this one does not touch CUDA: but it does.
    """
    from vllm import ModelRegistry

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for name in cast("list[str]", config.get("architectures") or []):
        known = ModelRegistry.models.get(name)
        if known is not None:
            ModelRegistry.register_model(name, cast(Any, known).load_model_cls())


def show_llvmlite_to_vllm() -> None:
    """Let vLLM look for its kernels in all that modules hold, also where weights were rounded and so Numba is loaded.

    llvmlite's library answers for any attribute with a function of its own, and vLLM takes its `__dict__` for one.
    """
    library = getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None)
    functions = cast("dict[str, object] | None", getattr(library, "_fntab", None))
    if functions is not None:
        functions.setdefault("__dict__", {})
