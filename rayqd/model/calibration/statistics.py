"""What the linears of one decoder layer are given, and by whom.

Shapes: T tokens, K input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(slots=True)
class Inputs:
    """One tensor that linears are given, summed up over all tokens."""

    linears: dict[str, nn.Linear]  # all that are given it, by their names in the model
    norm: nn.Module | None  # whose output it is
    second_moment: Float[Tensor, "K K"]  # XᵀX
    magnitude: Float[Tensor, " K"]  # sum of |X|


@dataclass(slots=True)
class _Watch:
    """Linears that are called one after the other with the same tensor share their sums."""

    inputs: dict[str, Inputs] = field(default_factory=dict[str, Inputs])  # by the first linear that is given it
    latest: tuple[str, Tensor] | None = None
    normed: tuple[nn.Module, Tensor] | None = None  # the last norm's output

    def linear(self, name: str, module: nn.Linear, x: Tensor) -> None:
        if self.latest is None or self.latest[1] is not x:
            self.latest = (name, x)
            self._add(name, module, x)
        self.inputs[self.latest[0]].linears[name] = module

    def _add(self, name: str, module: nn.Linear, x: Tensor) -> None:
        rows = x.flatten(0, -2).float()
        if name in self.inputs:
            self.inputs[name].second_moment.addmm_(rows.mT, rows)
            self.inputs[name].magnitude.add_(rows.abs().sum(0))
        else:
            norm = self.normed[0] if self.normed is not None and self.normed[1] is x else None
            self.inputs[name] = Inputs({name: module}, norm, rows.mT @ rows, rows.abs().sum(0))


def input_statistics(layer: nn.Module, names: Mapping[nn.Module, str], run: Callable[[], None]) -> list[Inputs]:
    """What `layer`'s linears are given while `run` sends the calibration sequences through it."""
    watch = _Watch()

    def linear(module: nn.Linear) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: watch.linear(names[module], module, args[0])

    def norm(module: nn.Module, _: Any, output: Tensor) -> None:
        watch.normed = (module, output)

    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(linear(module)) for module in linears]
    hooks += [module.register_forward_hook(norm) for module in layer.modules() if _is_norm(module)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(watch.inputs.values())


def _is_norm(module: nn.Module) -> bool:
    """Whether all that it has is one weight a channel."""
    parameters = dict(module.named_parameters())
    return list(parameters) == ["weight"] and parameters["weight"].dim() == 1
