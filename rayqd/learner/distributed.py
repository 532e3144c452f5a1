"""The workers of a learner, as one of them sees the others.

Adapters: every worker has the whole student, and gradients are added up. Full QAT: each worker has some rows of every
weight (see `rayqd.model.sharding`), so whatever needs whole weights, from evaluation to a checkpoint, is done by all of
them at the same time, and only the first one writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rayqd.model.sharding import whole, whole_over

States = dict[str, dict[str, Tensor]]


class Workers:
    """A worker that is alone: it has nothing to add, and nobody to wait for."""

    is_first = True
    is_sharded = False
    mesh: DeviceMesh | None = None  # over which the student is divided

    @property
    def takes_part(self) -> bool:
        """Whether this one does what needs the student's whole weights."""
        return self.is_first or self.is_sharded

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """In place, over all workers."""

    def largest(self, number: int) -> int:
        """Of all workers' numbers."""
        return number

    def everybody(self, mine: bool) -> bool:
        """Whether it is true of every worker."""
        return mine

    def wait(self) -> None:
        """Until every worker has come this far."""

    def whole(self, states: Mapping[str, Mapping[str, Tensor]], *, aside: bool = False) -> States:
        """`states` with whole tensors, on the first worker; the others help, and get nothing.

        `aside`: from another thread than the one that trains, and by way of connections of its own.
        """
        del aside
        return {name: dict(group) for name, group in states.items()}

    def whole_aside(self, tensor: Tensor) -> Tensor:
        """A tensor that is divided among the workers, from another thread than the one that trains."""
        return tensor

    def all_aside(self, value: Any) -> list[Any]:
        """Every worker's value, in their order; from another thread than the one that trains."""
        return [value]


class ManyWorkers(Workers):
    """Over the default process group of torch.distributed."""

    def __init__(self, device: torch.device, *, is_sharded: bool) -> None:
        self.is_first = distributed.get_rank() == 0
        self.is_sharded = is_sharded
        self._device = device
        if is_sharded:
            self.mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
            self._aside: Any = distributed.new_group(backend="gloo")
            self._mesh_aside = DeviceMesh.from_group(self._aside, "cpu")

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """At once: adapters are hundreds of small tensors."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def largest(self, number: int) -> int:
        numbers = torch.tensor(int(number), device=self._device)
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
        return int(numbers)

    def everybody(self, mine: bool) -> bool:
        return self.largest(not mine) == 0

    def wait(self) -> None:
        distributed.barrier()

    def whole(self, states: Mapping[str, Mapping[str, Tensor]], *, aside: bool = False) -> States:
        """Tensor by tensor, so that no more than one is whole on a GPU."""
        gather = self.whole_aside if aside else whole
        found: States = {name: {} for name in states}
        for group, tensors in states.items():
            for name, tensor in tensors.items():
                gathered = gather(tensor)
                if self.is_first:
                    found[group][name] = gathered.cpu() if gathered is not tensor else tensor
        return found

    def whole_aside(self, tensor: Tensor) -> Tensor:
        return whole_over(self._mesh_aside, tensor)

    def all_aside(self, value: Any) -> list[Any]:
        if not self.is_sharded:
            return [value]
        values: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value, group=self._aside)
        return values
