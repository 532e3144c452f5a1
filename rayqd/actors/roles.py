"""The processes of a run, all started at once."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from rayqd.actors.cluster import Cluster
from rayqd.actors.failures import unwrapped
from rayqd.actors.placement import Placement, place
from rayqd.actors.predecessor import wait_for_predecessor
from rayqd.actors.remote import start_conductor, start_rollouts, start_teachers
from rayqd.actors.rollout import MakeEngine
from rayqd.config import Config
from rayqd.data import ExampleSet


class Roles:
    """Rollout workers, teachers, conductor and learner; each loads its model while the others do.

    Runs beside each other are told their `placement`, and the `teachers` that they share; those stay when a run ends.
    """

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        make_engine: MakeEngine | None = None,
        *,
        placement: Placement | None = None,
        teachers: list[Any] | None = None,
    ) -> None:
        wait_for_predecessor(config.name)
        placement = placement or place(config, cluster.cpus, cluster.gpus, cluster.cores_per_node)
        rollouts = start_rollouts(config, placement, make_engine)
        own_teachers = start_teachers(config, placement) if teachers is None else []
        teachers = teachers or own_teachers
        actors = {f"rollout-{rank}": actor for rank, actor in enumerate(rollouts)}
        actors |= {f"teacher-{rank}": actor for rank, actor in enumerate(teachers)}
        self._unplaced = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
        self._starting = {actor.start.remote(): name for name, actor in actors.items()}
        self.conductor = start_conductor(config, rollouts, teachers)
        self._training = self.conductor.train.remote(placement)
        self._own = [self.conductor, *rollouts, *own_teachers]

    def set_data(self, training: ExampleSet, heldout: ExampleSet) -> None:
        ray.get(self.conductor.set_data.remote(training, heldout))

    def newly_ready(self) -> dict[str, float]:
        """Roles that became ready since the last call, with the seconds they took; raises why one could not."""
        ready: dict[str, float] = {}
        for ref in _done(self._starting):
            name = self._starting.pop(ref)
            try:
                ready[name] = ray.get(ref)
            except RayError as error:
                raise unwrapped(error, name) from None
        return ready

    def starting(self) -> list[str]:
        return list(self._starting.values())

    def unplaced(self) -> list[str]:
        """Roles that the cluster has given no process yet."""
        for ref in _done(self._unplaced):
            del self._unplaced[ref]
        return list(self._unplaced.values())

    def events(self, after: int, timeout_seconds: float) -> list[dict[str, Any]]:
        """The learner's events from number `after` on; raises why the learner ended, if it did."""
        events = ray.get(self.conductor.events.remote(after, timeout_seconds))
        if not events and _done({self._training: "learner"}):
            self._raise_learner_failure()
        return events

    def seconds(self) -> dict[str, float]:
        """Seconds of work so far of rollout workers and teachers."""
        return ray.get(self.conductor.role_seconds.remote())

    def stop(self) -> None:
        """Ask the learner to keep its last step; a `stopped` event follows."""
        ray.get(self.conductor.stop.remote())

    def wait_for_end(self, timeout_seconds: float) -> None:
        """Let Ray Train close its books."""
        ray.wait([self._training], timeout=timeout_seconds)

    def end(self) -> None:
        """End the processes of this run, where Ray lives on; Ray Train's end with the conductor, which owns them."""
        for actor in self._own:
            ray.kill(actor)

    def _raise_learner_failure(self) -> None:
        try:
            ray.get(self._training)
        except RayError as error:
            raise unwrapped(error, "learner") from None


def _done(refs: dict[Any, str]) -> list[Any]:
    return ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else []
