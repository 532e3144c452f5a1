"""The processes of a run, all started at once."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from rayqd.actors.connection import Cluster
from rayqd.actors.failures import unwrapped
from rayqd.actors.predecessor import wait_for_predecessor
from rayqd.actors.remote import start_conductor, start_rollouts, start_teachers
from rayqd.actors.topology import whereabouts
from rayqd.cluster.placement import Placement, place
from rayqd.config import Config
from rayqd.data import ExampleSet
from rayqd.rollout.worker import MakeEngine

_STOP_SECONDS = 30.0  # for the conductor to hear of it
_START_RETRIES = 2  # of a process that dies while it starts; its node may have been taken away


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
        placement = placement or place(config, cluster.nodes)
        rollouts = start_rollouts(config, placement, make_engine)
        own_teachers = start_teachers(config, placement) if teachers is None else []
        teachers = teachers or own_teachers
        actors = {f"rollout-{rank}": actor for rank, actor in enumerate(rollouts)}
        actors |= {f"teacher-{rank}": actor for rank, actor in enumerate(teachers)}
        self._unplaced = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
        self._starting = {_start(actor): name for name, actor in actors.items()}
        self._places: dict[str, str] = {}
        self.nodes_to_start = dict(placement.plan.nodes_to_start)  # before everybody has room, by group
        self.conductor = start_conductor(config, cluster.node_id, rollouts, teachers)
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
                ready[name], self._places[name] = ray.get(ref)
            except RayError as error:
                raise unwrapped(error, name) from None
        return ready

    def place(self, name: str) -> str:
        """The node of a role that is ready, if it has a name."""
        return self._places[name]

    def starting(self) -> list[str]:
        return list(self._starting.values())

    def unplaced(self) -> list[str]:
        """Roles that the cluster has given no process yet."""
        for ref in _done(self._unplaced):
            del self._unplaced[ref]
        return list(self._unplaced.values())

    def events(self, after: int, timeout_seconds: float) -> list[dict[str, Any]]:
        """The learner's events from number `after` on; raises why the learner ended, if it did."""
        events = _answer(self.conductor.events.remote(after, timeout_seconds))
        if not events and _done({self._training: "learner"}):
            self._raise_learner_failure()
        return events

    def awaited(self) -> list[str]:
        """Whom the learner waits for; nobody while it is at work itself."""
        return _answer(self.conductor.awaited.remote())

    def seconds(self) -> dict[str, float]:
        """Seconds of work so far of rollout workers and teachers."""
        return ray.get(self.conductor.role_seconds.remote())

    def stop(self) -> None:
        """Ask the learner to keep its last step; a `stopped` event follows. WorkerError if nobody is left to hear."""
        _answer(self.conductor.stop.remote(), timeout_seconds=_STOP_SECONDS)

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


def _answer(ref: Any, timeout_seconds: float | None = None) -> Any:
    """The conductor's; it may have died as any process may."""
    try:
        return ray.get(ref, timeout=timeout_seconds)
    except RayError as error:
        raise unwrapped(error, "conductor") from None


def _start(actor: Any) -> Any:
    """Seconds it took and where it was; on another node if the first one goes away meanwhile."""
    return actor.__ray_call__.options(name="start", max_task_retries=_START_RETRIES).remote(_started)


def _started(worker: Any) -> tuple[float, str]:
    return worker.start(), whereabouts()


def _done(refs: dict[Any, str]) -> list[Any]:
    return ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else []
