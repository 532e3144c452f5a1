"""Collectives of the learner's workers: gradients of adapters are summed, sharded weights gathered.

Adapters: every worker has the whole student, and gradients are all-reduced. Full QAT: each worker has some rows of
every weight (see `rayqd.model.sharding`), so whatever needs full weights, from evaluation to a checkpoint, is done by
all of them at the same time, and only rank 0 writes.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# torch's signatures are partly without types.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rayqd.model.sharding import full_tensor, full_tensor_over

StateDicts = Mapping[str, Mapping[str, Tensor]]  # named sets of tensors, as `Learner.state_dict` returns them

Value = TypeVar("Value")


class SingleProcess:
    """The collectives of a worker that is alone; the interface of all groups.

    Methods of the side group are called from another thread than the one that trains, and use connections of their own.
    """

    is_rank0 = True
    is_sharded = False
    mesh: DeviceMesh | None = None  # over which the student is sharded

    @property
    def joins_collectives(self) -> bool:
        """Whether this worker does what needs the student's full weights."""
        return self.is_rank0 or self.is_sharded

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all workers."""

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of all workers' numbers."""
        return number

    def all_true(self, flag: bool) -> bool:
        """Return whether `flag` is true on every worker."""
        return flag

    def barrier(self) -> None:
        """Wait until every worker has come this far."""

    def gather_full(self, states: StateDicts, *, on_side_group: bool = False) -> dict[str, dict[str, Tensor]]:
        """Return `states` with full tensors on rank 0, and without tensors on the others."""
        del on_side_group
        return {name: dict(tensors) for name, tensors in states.items()}

    def gather_on_side_group(self, tensor: Tensor) -> Tensor:
        """Return the full tensor, on the CPU if it was sharded; of all workers at the same time."""
        return tensor

    def all_gather_object(self, value: Value) -> list[Value]:
        """Return every worker's value by rank, over the side group."""
        return [value]

    def from_rank0(self, value: Value) -> Value:
        """Return rank 0's value to every worker that holds a shard; where nothing is sharded, its own to each."""
        return value


class DistributedGroup(SingleProcess):
    """The default process group of torch.distributed; where weights are sharded, with two more on gloo."""

    def __init__(self, device: torch.device, *, is_sharded: bool) -> None:
        self.is_rank0 = distributed.get_rank() == 0
        self.is_sharded = is_sharded
        self._device = device
        if is_sharded:
            self.mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
            self._side_group = distributed.new_group(backend="gloo")
            assert isinstance(self._side_group, distributed.ProcessGroup)  # torch's hint allows for non-members
            # Objects of the thread that trains: in one group the ranks could meet the two threads' calls in two orders.
            self._objects_group = distributed.new_group(backend="gloo")
            self._side_mesh = DeviceMesh.from_group(self._side_group, "cpu")

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Sum in place, in one collective: adapters are hundreds of small tensors."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def all_reduce_max(self, number: int) -> int:
        """Reduce on the device, since NCCL knows no other."""
        numbers = torch.tensor(int(number), device=self._device)
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
        return int(numbers)

    def all_true(self, flag: bool) -> bool:
        """Reduce to the largest of what is false."""
        return self.all_reduce_max(not flag) == 0

    def barrier(self) -> None:
        """Wait on the default process group."""
        distributed.barrier()

    def gather_full(self, states: StateDicts, *, on_side_group: bool = False) -> dict[str, dict[str, Tensor]]:
        """Gather tensor by tensor, so that no more than one is full on a GPU."""
        gather = self.gather_on_side_group if on_side_group else full_tensor
        full: dict[str, dict[str, Tensor]] = {name: {} for name in states}
        for part, tensors in states.items():
            for name, tensor in tensors.items():
                gathered = gather(tensor)
                if self.is_rank0:
                    full[part][name] = gathered.cpu() if gathered is not tensor else tensor
        return full

    def gather_on_side_group(self, tensor: Tensor) -> Tensor:
        """Gather on the CPUs, over gloo."""
        return full_tensor_over(self._side_mesh, tensor)

    def all_gather_object(self, value: Value) -> list[Value]:
        """Gather over gloo; where nothing is sharded only rank 0 asks, and gets its own."""
        if not self.is_sharded:
            return [value]
        values: list[Value] = [value] * distributed.get_world_size()
        distributed.all_gather_object(values, value, group=self._side_group)
        return values

    def from_rank0(self, value: Value) -> Value:
        """Send it over gloo, by the thread that trains."""
        if not self.is_sharded:
            return value
        values: list[Value] = [value]
        assert isinstance(self._objects_group, distributed.ProcessGroup)
        distributed.broadcast_object_list(values, src=0, group=self._objects_group)
        return values[0]
