"""The import of transformers in a process that a run starts, without what no run uses.

Its modules import scikit-learn for assisted generation with a threshold, SciPy for object detection, torchao for
models that are quantized already, each where it is installed: a quarter of the 4,300 modules of a process's start.
"""

from __future__ import annotations

import importlib
from typing import Any

_UNUSED = ("is_sklearn_available", "is_scipy_available", "is_torchao_available")
_IMPORTERS = ("generation.candidate_generator", "loss.loss_utils", "quantizers.auto", "modeling_utils")


def import_transformers() -> None:
    """Import what loads models, with torch, and without those libraries, which all others may still import.

    To be called before anything else imports transformers' models: later it changes nothing.
    """
    utils: Any = importlib.import_module("transformers.utils")
    asked = {name: getattr(utils, name) for name in _UNUSED if hasattr(utils, name)}
    for name in asked:
        setattr(utils, name, _is_not_available)
    try:
        for module in _IMPORTERS:
            importlib.import_module(f"transformers.{module}")
    finally:
        for name, function in asked.items():
            setattr(utils, name, function)


def _is_not_available(*_: object) -> bool:
    return False
