"""Second moments and magnitudes of the inputs of one decoder layer's linears, and the norms that they come from.

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
class InputStatistics:
    """Sums over all tokens of one tensor X [T, K] that linears read."""

    linears: dict[str, nn.Linear]  # all that read it, by their names in the model
    norm: nn.Module | None  # whose output it is
    second_moment: Float[Tensor, "K K"]  # XᵀX
    magnitude: Float[Tensor, " K"]  # sum of |X|


@dataclass(slots=True)
class _Recorder:
    """Linears that are called with the same tensor within one call of the layer share their statistics."""

    statistics: dict[str, InputStatistics] = field(default_factory=dict[str, InputStatistics])  # by the first linear
    inputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict[int, tuple[str, Tensor]])  # by id, with linear
    norms: dict[int, tuple[nn.Module, Tensor]] = field(default_factory=dict[int, tuple[nn.Module, Tensor]])  # by output

    def start(self) -> None:
        """Forget the tensors of an earlier call, which were kept so that no other one has their ids."""
        self.inputs.clear()
        self.norms.clear()

    def record(self, name: str, module: nn.Linear, x: Tensor) -> None:
        if id(x) not in self.inputs:
            self.inputs[id(x)] = (name, x)
            self._add(name, module, x)
        self.statistics[self.inputs[id(x)][0]].linears[name] = module

    def _add(self, name: str, module: nn.Linear, x: Tensor) -> None:
        rows = x.flatten(0, -2).float()
        if name in self.statistics:
            self.statistics[name].second_moment.addmm_(rows.mT, rows)
            self.statistics[name].magnitude.add_(rows.abs().sum(0))
        else:
            norm = self.norms[id(x)][0] if id(x) in self.norms else None
            self.statistics[name] = InputStatistics({name: module}, norm, rows.mT @ rows, rows.abs().sum(0))


def collect_input_statistics(
    layer: nn.Module, names: Mapping[nn.Module, str], run: Callable[[], None]
) -> list[InputStatistics]:
    """Collect them from hooks in `layer` while `run` sends the calibration sequences through it.

    `names` are the modules' names in the model. Returns one entry for each tensor that linears read, in the order in
    which the layer computes them.
    """
    recorder = _Recorder()

    def record_input(module: nn.Linear) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: recorder.record(names[module], module, args[0])

    def record_norm(module: nn.Module, _: Any, output: Tensor) -> None:
        recorder.norms[id(output)] = (module, output)

    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(record_input(module)) for module in linears]
    hooks.append(layer.register_forward_pre_hook(lambda *_: recorder.start()))
    hooks += [module.register_forward_hook(record_norm) for module in layer.modules() if _is_norm(module)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return list(recorder.statistics.values())


def _is_norm(module: nn.Module) -> bool:
    """Whether all that it has is one weight a channel."""
    parameters = dict(module.named_parameters())
    return list(parameters) == ["weight"] and parameters["weight"].dim() == 1
