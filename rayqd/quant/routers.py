"""Which layers send tokens to experts: found by what stands beside them, not by their names.

A router has one output for each expert and lies next to the experts, a gate in front of a shared expert has one output.
Their outputs are compared with each other, so that a small error moves a token to other experts; and they are small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]


def find_routers(model: nn.Module) -> dict[str, nn.Module]:
    """Return routers and gates by qualified name, whether they are nn.Linear or have a weight of their own."""
    found: dict[str, nn.Module] = {}
    for container, num_experts in find_expert_containers(model):
        block_name, _, leaf = container.rpartition(".")
        block = model.get_submodule(block_name)
        prefix = f"{block_name}." if block_name else ""
        for name, module in _modules(block):
            is_expert = name == leaf or name.startswith(f"{leaf}.")
            if isinstance(module, nn.Linear):
                continue  # looked at from the module that it lies in, together with what lies beside it
            if not is_expert and _output_sizes(module) and _output_sizes(module) <= {num_experts, 1}:
                found.update({f"{prefix}{n}": m for n, m in _owners(name, module)})
    return found


def find_expert_containers(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield name and number of experts of each module of experts: 3-D parameters, or a list of modules."""
    for name, module in _modules(model):
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            experts = list(module.children())
            if name and len(experts) > 1 and name.rpartition(".")[2] == "experts":
                yield name, len(experts)
        elif not isinstance(module, _ConvNd):
            sizes = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3}
            if name and len(sizes) == 1 and (size := sizes.pop()) > 1:
                yield name, size


def _output_sizes(module: nn.Module) -> set[int]:
    """Return the numbers of outputs of all matrices that the module, or a layer directly in it, multiplies with."""
    weights = [p for p in module.parameters(recurse=False) if p.dim() == 2]
    weights += [layer.weight for layer in module.children() if isinstance(layer, nn.Linear)]
    return {weight.shape[0] for weight in weights}


def _owners(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose matrices `_output_sizes` looked at, by name."""
    if any(p.dim() == 2 for p in module.parameters(recurse=False)):
        yield name, module
    for leaf, layer in module.named_children():
        if isinstance(layer, nn.Linear):
            yield f"{name}.{leaf}" if name else leaf, layer


def _modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
