"""The processes of a run, all started at once."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError
from ray.util import list_named_actors

from rayqd.actors.connection import Cluster
from rayqd.actors.failures import unwrap_error
from rayqd.actors.ray_types import kill, wait
from rayqd.actors.remote import start_controller, start_rollouts, start_teachers
from rayqd.actors.stalls import dump_stacks, explain_stall
from rayqd.actors.topology import anything_waits_for_room
from rayqd.actors.workers import Started, TeacherHandle
from rayqd.cluster.placement import Placement, place
from rayqd.config import Config
from rayqd.data import ExampleSet
from rayqd.data.plan import first_on_policy_step
from rayqd.errors import RunError, StallError
from rayqd.events import TimedEvent
from rayqd.rollout.worker import MakeEngine
from rayqd.spans import Span

_POLL_SECONDS = 0.5
_NAME_TIMEOUT_SECONDS = 20.0  # a run that was just stopped is gone sooner
_STOP_SECONDS = 6.0  # for the controller to answer once the run is to stop

T = TypeVar("T")


class RunActors:
    """Rollout workers, teachers, controller and learner of one run; each loads its model while the others do."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        make_engine: MakeEngine | None = None,
        *,
        placement: Placement | None = None,
        teachers: list[TeacherHandle] | None = None,
        alone: bool = False,
    ) -> None:
        """Start them all, and wait for none.

        Runs beside each other are given their `placement`, and the `teachers` that they share and that outlive them. A
        run that is `alone` has a Ray of this machine that ends with it.
        """
        _wait_until_name_is_free(config.name)
        placement = placement or place(config, cluster.nodes)
        rollouts = start_rollouts(config, placement, make_engine)
        own_teachers = start_teachers(config, placement) if teachers is None else []
        teachers = teachers or own_teachers
        actors = {f"rollout-{rank}": actor for rank, actor in enumerate(rollouts)}
        actors |= {f"teacher-{rank}": actor for rank, actor in enumerate(teachers)}
        self._unplaced = {actor.is_alive.remote(): name for name, actor in actors.items()}
        # On CPUs an engine's start takes the cores from those whom the first step waits for.
        has_time = first_on_policy_step(config) > config.rollout.max_staleness
        waits = alone and has_time and not any(placement.gpus_per_worker.values())
        self._unstarted = dict(zip(actors, rollouts, strict=False)) if waits else {}
        self._starting = {actor.start.remote(): name for name, actor in actors.items() if name not in self._unstarted}
        self.nodes_to_start = dict(placement.plan.nodes_to_start)  # by group, before every actor has a node
        self.controller = start_controller(config, cluster.node_id, rollouts, teachers)
        self._controller_pid = ray.get(self.controller.process_id.remote())
        self._patience_seconds = config.ray.stall_seconds
        self._config = config
        self._training = self.controller.train.remote(placement, alone)
        self._own = [self.controller, *rollouts, *own_teachers]

    def set_data(self, training: ExampleSet, heldout: ExampleSet) -> None:
        """Give the run its rows."""
        ray.get(self.controller.set_data.remote(training, heldout))

    def start_engines(self) -> None:
        """Have those rollout workers make their engines that have waited until the learner is at work."""
        self._starting |= {actor.start.remote(): name for name, actor in self._unstarted.items()}
        self._unstarted = {}

    def collect_ready(self) -> dict[str, Started]:
        """Return by name the actors that became ready since the last call; raises why one failed."""
        ready: dict[str, Started] = {}
        for ref in _list_done(self._starting):
            name = self._starting.pop(ref)
            try:
                ready[name] = ray.get(ref)
            except RayError as error:
                raise unwrap_error(error, name) from None
        return ready

    def list_starting(self) -> list[str]:
        """Return the actors that are not ready yet."""
        return list(self._starting.values())

    def list_unplaced(self) -> list[str]:
        """Return the actors that the cluster has given no process yet."""
        for ref in _list_done(self._unplaced):
            del self._unplaced[ref]
        return list(self._unplaced.values())

    def wait_for_room(self) -> bool:
        """Return whether something is without a place on the cluster, instead of only slow to start in it."""
        return anything_waits_for_room()

    def events(self, after: int, timeout_seconds: float) -> list[TimedEvent]:
        """Return the run's events from number `after` on; raises why the learner ended, if it did."""
        events = self._get(self.controller.events.remote(after, timeout_seconds))
        if not events and _list_done([self._training]):
            self._raise_learner_failure()
        return events

    def list_awaited_workers(self) -> list[str]:
        """Return the workers that the learner waits for; none while it is at work itself."""
        return self._get(self.controller.list_awaited_workers.remote())

    def role_seconds(self) -> dict[str, float]:
        """Return the seconds of work so far of rollout workers and teachers."""
        return ray.get(self.controller.role_seconds.remote())

    def role_spans(self) -> list[Span]:
        """Return what the controller's process did, and what the first calls of rollout workers and teachers took."""
        return ray.get(self.controller.role_spans.remote())

    def stop(self) -> None:
        """Ask the learner to save its last step; a `stopped` event follows.

        Raises WorkerError if the controller is gone, StallError if it does not answer, for which nobody waits long now.
        """
        self._patience_seconds = min(self._patience_seconds, _STOP_SECONDS)
        self._get(self.controller.stop.remote())

    def wait_for_end(self, timeout_seconds: float) -> None:
        """Wait for Ray Train to write its own records."""
        wait([self._training], timeout_seconds)

    def kill(self) -> None:
        """End the processes of this run, where Ray lives on; Ray Train's end with the controller, which owns them."""
        for actor in self._own:
            kill(actor)

    def _raise_learner_failure(self) -> None:
        try:
            ray.get(self._training)
        except RayError as error:
            if stall := explain_stall(self._config):
                raise StallError(stall) from None
            raise unwrap_error(error, "learner") from None

    def _get(self, ref: ObjectRef[T]) -> T:
        """Return what the controller answers; WorkerError if it died, StallError if it stands still."""
        try:
            return ray.get(ref, timeout=self._patience_seconds)
        except GetTimeoutError:
            dump_stacks(self._controller_pid)
            raise StallError(
                f"the controller did not answer for {self._patience_seconds:g} s: its stacks are in Ray's logs; the "
                "same command goes on from the last checkpoint"
            ) from None
        except RayError as error:
            raise unwrap_error(error, "controller") from None


def _list_done(refs: Iterable[ObjectRef[T]]) -> list[ObjectRef[T]]:
    return wait([*refs], timeout_seconds=0)[0]


def _wait_until_name_is_free(run: str, timeout_seconds: float = _NAME_TIMEOUT_SECONDS) -> None:
    """Wait until no actor of a run of this name is left on the cluster.

    Raises RunError when they stay, because then that run goes on.
    """
    deadline = time.monotonic() + timeout_seconds
    while any(name.startswith(f"rayqd/{run}/") for name in list_named_actors()):
        if time.monotonic() > deadline:
            raise RunError(
                f"a run named {run} is going on on this cluster: stop it (`ray job list`, `ray job stop`), "
                "wait for its end, or give this one another name"
            )
        time.sleep(_POLL_SECONDS)
