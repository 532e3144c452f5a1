"""What vLLM must not replace when it reloads weights: CUDA graphs that were captured before go on using it.

vLLM before its pull request 48438 (0.26 is) gives the Marlin kernel of each layer a new workspace at every reload. The
graphs keep the address of the freed one; whatever is put there later is read as locks, and the kernel waits for ever.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

_NAME = "workspace"


@contextmanager
def keep_workspaces(model: torch.nn.Module) -> Generator[None]:
    """Let every layer of `model` leave the block with the workspace tensor, the object itself, that it came with."""
    workspaces = _find_workspaces(model)
    try:
        yield
    finally:
        for owner, workspace in workspaces:
            setattr(owner, _NAME, workspace)


def _find_workspaces(model: torch.nn.Module) -> list[tuple[object, Tensor]]:
    """Return what owns a workspace, and the workspace: a layer itself (nvfp4) or its scheme's kernel (int4)."""
    owners: list[object] = []
    for layer in model.modules():
        owners += [layer, getattr(getattr(layer, "scheme", None), "kernel", None)]
    found = [(owner, getattr(owner, _NAME, None)) for owner in owners]
    return [(owner, workspace) for owner, workspace in found if isinstance(workspace, Tensor)]
