"""The import of transformers, PEFT and compressed-tensors in a process that a run starts, without what no run uses.

transformers' modules import scikit-learn for assisted generation with a threshold, SciPy for object detection, torchao
for models that are quantized already, each where it is installed: a quarter of the 4,300 modules of a process's start.
PEFT imports bitsandbytes for adapters on weights that it has rounded, and that torch's compiler: 570 modules.
compressed-tensors makes that compiler ready for a cast to four-bit floats, for which reading needs none: 550 modules.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any
from unittest.mock import patch

_UNUSED = ("is_sklearn_available", "is_scipy_available", "is_torchao_available")
_QUANTIZER = "bitsandbytes"
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


def import_peft() -> None:
    """Import what adapters are made of, without bitsandbytes, which all others may still import.

    To be called before anything else imports PEFT: later it changes nothing.
    """
    is_new = _QUANTIZER not in sys.modules
    if is_new:
        sys.modules[_QUANTIZER] = None  # pyright: ignore[reportArgumentType]  # Python's own mark: not to be found
    try:
        importlib.import_module("peft.tuners.lora")
    finally:
        if is_new:
            del sys.modules[_QUANTIZER]


def import_compressed_tensors() -> None:
    """Import what reads exports back, with nothing compiled.

    To be called before anything else imports compressed-tensors: later it changes nothing.
    """
    with patch("torch.compile", _leave_uncompiled):
        importlib.import_module("compressed_tensors.quantization")


def _leave_uncompiled(function: Any = None, **_: object) -> Any:
    return function or _leave_uncompiled


def _is_not_available(*_: object) -> bool:
    return False
