"""Second moments of what each expert gets: tokens that are routed to it, and what its first projection makes of them.

Shapes: T tokens, E experts, k of them a token, K input features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SECOND_PROJECTION = "down_proj"


@dataclass(slots=True)
class ExpertStatistics:
    """Sums over the tokens of each expert of the inputs X_e of one parameter [E, N, K]."""

    name: str
    weight: nn.Parameter
    second_moments: Float[Tensor, "E K K"]  # X_eᵀX_e
    num_tokens: Int[Tensor, " E"]

    @property
    def without_tokens(self) -> list[int]:
        """Return the experts that saw no token."""
        return torch.nonzero(self.num_tokens == 0).flatten().tolist()


@contextmanager
def record_experts(model: nn.Module, names: Iterable[str]) -> Iterator[list[ExpertStatistics]]:
    """Yield the statistics of the parameters `names`, which grow with each forward pass within the block."""
    found: dict[nn.Module, dict[str, ExpertStatistics]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        weight = model.get_parameter(name)
        e, _, k = weight.shape
        zeros = torch.zeros(e, k, k, dtype=torch.float32, device=weight.device)
        counts = torch.zeros(e, dtype=torch.long, device=weight.device)
        found.setdefault(model.get_submodule(parent), {})[leaf] = ExpertStatistics(name, weight, zeros, counts)

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, experts = (cast("list[Tensor]", [*args, *kwargs.values()]))[:2]
        _add_batch(module, found[module], hidden.flatten(0, -2), experts.flatten(0, -2))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in found]
    try:
        yield [statistics for parameters in found.values() for statistics in parameters.values()]
    finally:
        for hook in hooks:
            hook.remove()


def _add_batch(
    module: nn.Module,
    parameters: dict[str, ExpertStatistics],
    hidden: Float[Tensor, "T K"],
    experts: Int[Tensor, "T k"],
) -> None:
    for e in range(next(iter(parameters.values())).weight.shape[0]):
        x = hidden[(experts == e).any(-1)]
        if not len(x):
            continue
        for leaf, statistics in parameters.items():
            rows = (_between(module, e, x) if leaf == SECOND_PROJECTION else x).float()
            statistics.second_moments[e].addmm_(rows.mT, rows)
            statistics.num_tokens[e] += len(rows)


def _between(module: Any, e: int, x: Tensor) -> Tensor:
    """Return what enters an expert's second projection, as transformers' own implementations compute it."""
    if module.has_gate:
        return module._apply_gate(F.linear(x, module.gate_up_proj[e]))
    return module.act_fn(F.linear(x, module.up_proj[e]))
