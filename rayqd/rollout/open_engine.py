"""The one vLLM engine that a process has open.

vLLM keeps its process groups in globals of the process, and an engine that is collected takes them down, whoever uses
them by then: an engine that lay in a reference cycle once ended its successor in the middle of a batch.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

_open: weakref.ref[object] | None = None


def set_open_engine(llm: object) -> None:
    """Remember vLLM's `LLM` as the one that this process has."""
    global _open
    _open = weakref.ref(llm)


def end_open_engine() -> None:
    """End the engine that this process has, if any: its memory and vLLM's process groups are free afterwards.

    Whoever still holds it can compute nothing with it.
    """
    global _open
    llm = _open() if _open else None
    _open = None
    if llm is not None:
        client = cast(Any, llm).llm_engine.engine_core
        client.shutdown()
