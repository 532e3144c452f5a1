"""Ray Train without those of its actors that have no work in a run on this machine's own Ray.

Each of them is a process that imports ray.train, seconds of the cores that the first step waits for, and the learner
starts behind two of them: the coordinator asks an autoscaler for nodes, the cleaner frees what a lost run holds of a
cluster that lives on, and the dataset manager deals out data sets of Ray's, of which there are none. Ray Train's own
controller is no actor either: it runs in the process that asks for the training, which is one itself.

A single worker has nobody to talk to: it gets no process group of torch's, and nobody waits until torch, which Ray's
trainer for it imports, is there in the controller's process before it is in the learner's.
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# Ray's signatures are partly without types.

from __future__ import annotations

import asyncio
from typing import Any

from ray.train.backend import BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_IDLE_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
_COLLECTIVE_TIMEOUT_SECONDS = 6 * 3600  # others wait for rank 0 to calibrate; Ray ends them where one is lost


def make_backend(num_workers: int, *, on_gpus: bool) -> BackendConfig:
    """Return what connects the workers of a training run; nothing for a single one."""
    if num_workers == 1:
        return BackendConfig()
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="nccl" if on_gpus else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_SECONDS)


class LocalTrainer(DataParallelTrainer):
    """Ray Train's trainer for a Ray that ends with the run, and a fixed number of workers that fit it.

    Where a version of Ray has other names for what is left out here, it is Ray's own trainer.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # pyright: ignore[reportUnknownVariableType]
        return [each for each in callbacks if type(each).__name__ not in _IDLE_CALLBACKS]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """Run Ray Train's controller in this process, an actor that the learner ends with, instead of in one more."""
        arguments["scaling_policy"] = _AsksForNoNodes(self.scaling_config)
        own: Any = TrainController(**arguments)
        asyncio.run(own.run())
        return own.get_result()


class _AsksForNoNodes(FixedScalingPolicy):
    """As many workers as were asked for, on the nodes that there are."""

    def _maybe_send_resource_request(self) -> None:
        pass

    def _send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass
