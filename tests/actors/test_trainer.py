"""What of Ray Train a run on its own Ray leaves out is there, under the names by which it is left out."""

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rayqd.actors.trainer import LocalTrainer, make_backend


def train_nothing() -> None: ...


def callbacks_of(trainer: type[DataParallelTrainer]) -> list[str]:
    made: Any = trainer(train_nothing, scaling_config=ScalingConfig(num_workers=2))
    return [type(each).__name__ for each in made._create_default_callbacks()]


def test_only_the_callbacks_with_idle_actors_are_left_out() -> None:
    idle = ["PlacementGroupCleanerCallback", "DatasetsCallback"]
    rays_own = callbacks_of(DataParallelTrainer)
    assert [name for name in rays_own if name in idle] == idle
    assert callbacks_of(LocalTrainer) == [name for name in rays_own if name not in idle]


def test_the_controller_runs_in_this_process_with_a_policy_that_asks_no_autoscaler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    class Recorded:
        def __init__(self, **arguments: Any) -> None:
            given.update(arguments)

        async def run(self) -> None:
            given["process"] = os.getpid()

        def get_result(self) -> str:
            return "the result"

    monkeypatch.setattr("rayqd.actors.trainer.TrainController", Recorded)
    trainer: Any = LocalTrainer(train_nothing, scaling_config=ScalingConfig(num_workers=2))
    assert trainer._initialize_and_run_controller(scaling_policy=None, failure_policy="Ray's") == "the result"
    assert given["process"] == os.getpid()  # no actor of its own
    policy = given["scaling_policy"]
    assert isinstance(policy, ScalingPolicy)
    assert given["failure_policy"] == "Ray's"
    decision = policy.make_decision_for_non_running_worker_group()  # without a coordinator, which Ray's own would miss
    assert decision.num_workers == 2
    policy.before_controller_abort()
    asking = {name for name, _ in inspect.getmembers(ScalingPolicy, inspect.isfunction) if name.endswith("_request")}
    assert asking == {"_maybe_send_resource_request", "_send_resource_request", "_cancel_resource_request"} | {
        "_get_num_workers_for_resource_request"
    }


def test_several_workers_have_a_process_group_of_torchs_and_a_single_one_has_none() -> None:
    several = make_backend(2, on_gpus=False)
    assert isinstance(several, TorchConfig)
    assert (several.backend, several.timeout_s) == ("gloo", 6 * 3600)
    assert not isinstance(make_backend(1, on_gpus=True), TorchConfig)


@pytest.mark.slow
def test_what_starts_a_single_learner_waits_for_no_torch() -> None:
    code = (
        "import sys; from rayqd.actors.learner import make_backend; make_backend(1, on_gpus=False); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_the_driver_starts_ray_without_what_its_checks_import() -> None:
    heavy = ("peft", "ray.train", "torch", "transformers", "vllm")
    code = f"import sys, rayqd.commands.distill; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
