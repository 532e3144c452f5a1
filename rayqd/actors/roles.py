"""The processes of a run, all started at once."""

from __future__ import annotations

import queue
import threading
from typing import Any

import ray
from ray.exceptions import RayError

from rayqd.actors.cluster import Cluster
from rayqd.actors.failures import unwrapped
from rayqd.actors.learner import make_trainer
from rayqd.actors.placement import place
from rayqd.actors.remote import start_conductor, start_rollouts, start_teachers
from rayqd.config import Config
from rayqd.data import ExampleSet
from rayqd.errors import RayqdError


class Roles:
    """Rollout workers, teachers, conductor and learner; each loads its model while the others do."""

    def __init__(self, config: Config, cluster: Cluster) -> None:
        placement = place(config, cluster.cpus, cluster.gpus, cluster.cores_per_node)
        rollouts, teachers = start_rollouts(config, placement), start_teachers(config, placement)
        actors = {f"rollout-{rank}": actor for rank, actor in enumerate(rollouts)}
        actors |= {f"teacher-{rank}": actor for rank, actor in enumerate(teachers)}
        self._unplaced = {actor.__ray_ready__.remote(): name for name, actor in actors.items()}
        self._starting = {actor.start.remote(): name for name, actor in actors.items()}
        self.conductor = start_conductor(config, rollouts, teachers)
        self._failures: queue.Queue[RayqdError] = queue.Queue()
        trainer = make_trainer(config, self.conductor, placement, config.run_dir / "ray_train")
        # In the main thread Ray Train would take over Ctrl-C, and stop only in its own time.
        threading.Thread(target=self._train, args=[trainer], daemon=True).start()

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
        if not events and not self._failures.empty():
            raise self._failures.get()
        return events

    def seconds(self) -> dict[str, float]:
        """Seconds of work so far of rollout workers and teachers."""
        return ray.get(self.conductor.role_seconds.remote())

    def _train(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:
            self._failures.put(unwrapped(error, "learner"))


def _done(refs: dict[Any, str]) -> list[Any]:
    return ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else []
