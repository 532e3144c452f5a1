"""The processes of a run, all started at once."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, LocalRayletDiedError, RayActorError, RayError
from ray.util import list_named_actors

from rayqd.actors.connection import Cluster
from rayqd.actors.deaths import MEMORY_IS_FULL, NODE_IS_GONE, describe_death, find_own_error, is_death, last_words
from rayqd.actors.failures import unwrap_error
from rayqd.actors.pulse import describe_silent, end_process
from rayqd.actors.ray_types import kill, wait
from rayqd.actors.remote import start_controller, start_rollouts, start_teachers
from rayqd.actors.stalls import LearnerPulse, explain_stall
from rayqd.actors.topology import anything_waits_for_room, remove_placement_groups
from rayqd.actors.workers import Started, TeacherHandle
from rayqd.cluster.placement import Placement, place
from rayqd.config import Config
from rayqd.data import ExampleSet
from rayqd.data.plan import first_on_policy_step
from rayqd.errors import DeathError, HangError, RayqdError, RunError, StallError
from rayqd.events import TimedEvent
from rayqd.rollout.sampling import SamplingRules, sampling_rules
from rayqd.rollout.worker import MakeEngine
from rayqd.spans import Span

_POLL_SECONDS = 0.1
_NAME_TIMEOUT_SECONDS = 20.0  # a run that was just stopped is gone sooner
_STOP_SECONDS = 6.0  # for the controller to answer once the run is to stop
_SAVE_SECONDS = 60.0  # for a sign of life of the learner that writes a checkpoint then, and may hold Python's lock

T = TypeVar("T")


class RunActors:
    """Rollout workers, teachers, controller and learner of one run; each loads its model while the others do."""

    _is_stopping = False

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
        """Start them all, and wait for none. None of them reads model or rows before `set_data`.

        Runs beside each other are given their `placement`, and the `teachers` that they share and that outlive them. A
        run that is `alone` has a Ray of this machine that ends with it.
        """
        _wait_until_free(f"rayqd/{config.name}/", _explain_taken(config.name))
        self.began = time.monotonic()
        placement = placement or place(config, cluster.nodes)
        rollouts = start_rollouts(config, placement, make_engine)
        own_teachers = start_teachers(config, placement) if teachers is None else []
        teachers = teachers or own_teachers
        actors = {f"rollout-{rank}": actor for rank, actor in enumerate(rollouts)}
        actors |= {f"teacher-{rank}": actor for rank, actor in enumerate(teachers)}
        self._unplaced = {actor.is_alive.remote(): name for name, actor in actors.items()}
        # On CPUs an engine's start takes the cores from those whom the first step waits for.
        has_time = first_on_policy_step(config) > config.rollout.first_staleness
        waits = alone and has_time and not any(placement.gpus_per_worker.values())
        self._unstarted = dict(zip(actors, rollouts, strict=False)) if waits else {}
        self._prepared = {name: actor for name, actor in actors.items() if name not in self._unstarted}
        self._preparing = {actor.prepare.remote(): name for name, actor in self._prepared.items()}
        self._starting: dict[ObjectRef[Started], str] = {}
        self.nodes_to_start = dict(placement.plan.nodes_to_start)  # by group, before every actor has a node
        self._rows: tuple[ExampleSet, ExampleSet, SamplingRules | None] | None = None
        self._patience_seconds = config.ray.stall_seconds
        self._config = config
        self._placement = placement
        self._node_id = cluster.node_id
        self._rollouts, self._teachers = rollouts, teachers
        self._own = [*rollouts, *own_teachers]
        self._learner_pulse = LearnerPulse(config)
        self._alone = alone
        self._start_controller()

    def set_data(self, training: ExampleSet, heldout: ExampleSet) -> None:
        """Give the run its rows, and have everybody load models, which are there and as they should be."""
        self._starting |= {actor.start.remote(): name for name, actor in self._prepared.items()}
        self._rows = (training, heldout, sampling_rules(self._config) if self._config.is_on_policy else None)
        self._send_rows()

    def restart(self) -> None:
        """Start controller and learner again, which goes on from the last checkpoint; the others stay as they are.

        Nothing that the old ones made is used any more: what belongs to a step is a function of seed and step.
        Events are numbered from 0 again.
        """
        self._learner_pulse.forget()
        kill(self.controller)  # and with it Ray Train's controller and its workers, which it owns
        end_process(_value_of(self._asked_pid))  # Ray asks it to go, and one that is stopped hears of nothing
        if self._alone:  # on a cluster an actor of Ray Train's does it
            remove_placement_groups()  # which outlive the actor that made them
        name = f"rayqd/{self._config.name}/controller"
        _wait_until_free(name, f"the controller of {self._config.name} does not end: the same command goes on")
        self._start_controller()
        self._send_rows()

    def start_engines(self) -> None:
        """Have those rollout workers make their engines that have waited until the learner is at work."""
        self._starting |= {actor.start.remote(): name for name, actor in self._unstarted.items()}
        self._unstarted = {}

    def collect_ready(self) -> dict[str, Started]:
        """Return by name the actors that became ready since the last call; raises why one failed."""
        for ref in _list_done(self._preparing):
            _outcome(ref, self._preparing.pop(ref))
        done = {ref: self._starting.pop(ref) for ref in _list_done(self._starting)}
        return {name: _outcome(ref, name) for ref, name in done.items()}

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
        """Return the run's events from number `after` on; raises why the learner ended, if it did.

        DeathError where `restart` may help, StallError where the learner is silent while the run is to stop.
        """
        events = self._get(self.controller.events.remote(after, timeout_seconds))
        if not events and _list_done([self._training]):
            self._raise_learner_failure()
        if events:
            return events
        if self._is_stopping and self._learner_pulse.is_silent(_SAVE_SECONDS):
            raise StallError(f"the learner gave no sign of life for {_SAVE_SECONDS:g} s")
        if not self._is_stopping and (silent := self._learner_pulse.find_silent()):
            raise DeathError(silent)
        return events

    def list_awaited_workers(self) -> list[str]:
        """Return the workers that the learner waits for; none while it is at work itself."""
        return self._get(self.controller.list_awaited_workers.remote())

    def role_seconds(self) -> dict[str, float]:
        """Return the seconds of work so far of rollout workers and teachers."""
        with contextlib.suppress(RayError):  # all that the run is for is done by then
            return ray.get(self.controller.role_seconds.remote(), timeout=self._patience_seconds)
        return {}

    def role_spans(self) -> list[Span]:
        """Return what the controller's process did, and what the first calls of rollout workers and teachers took."""
        with contextlib.suppress(RayError):
            return ray.get(self.controller.role_spans.remote(), timeout=self._patience_seconds)
        return []

    def stop(self) -> None:
        """Ask the learner to save its last step; a `stopped` event follows.

        Raises WorkerError if the controller is gone, StallError if it does not answer, for which nobody waits long now.
        """
        self._is_stopping = True
        self._patience_seconds = min(self._patience_seconds, _STOP_SECONDS)
        self._get(self.controller.stop.remote())

    def wait_for_end(self, timeout_seconds: float) -> None:
        """Wait for Ray Train to write its own records."""
        wait([self._training], timeout_seconds)

    def kill(self) -> None:
        """End the processes of this run, where Ray lives on; Ray Train's end with the controller, which owns them."""
        for actor in (self.controller, *self._own):
            kill(actor)

    def _start_controller(self) -> None:
        self.controller = start_controller(self._config, self._node_id, self._rollouts, self._teachers, self._placement)
        self._asked_pid = self.controller.process_id.remote()
        self._training = self.controller.train.remote(self._placement, self._alone)

    def _send_rows(self) -> None:
        if self._rows is None:
            return
        with contextlib.suppress(RayActorError):  # the next question for events finds out, and `restart` sends them
            ray.get(self.controller.set_data.remote(*self._rows))

    def _raise_learner_failure(self) -> None:
        try:
            ray.get(self._training)
        except RayError as error:
            if stall := explain_stall(self._config):
                raise HangError(stall) from None
            raise make_error(error, "learner") from None

    def _wait_for_controller(self) -> None:
        """Wait until it has a process, which may take longer than it may stand still later."""
        seconds = self._patience_seconds + self._config.ray.placement_timeout_seconds
        try:
            ray.get(self._asked_pid, timeout=seconds)
        except GetTimeoutError:
            raise StallError(
                f"the controller did not start within {seconds:g} s: see Ray's logs; the same command goes on from the "
                "last checkpoint"
            ) from None

    def _get(self, ref: ObjectRef[T]) -> T:
        """Return what the controller answers; DeathError if it died or stands still."""
        try:
            if not self._is_stopping:
                self._wait_for_controller()
            return ray.get(ref, timeout=self._patience_seconds)
        except GetTimeoutError:
            state = describe_silent(_value_of(self._asked_pid), f"{self._config.name}/controller")
            text = f"the controller did not answer for {self._patience_seconds:g} s: {state}"
            raise StallError(text) if self._is_stopping else DeathError(text) from None
        except RayError as error:
            raise make_error(error, "controller") from None


def make_error(error: RayError, who: str) -> RayqdError:
    """Return why `who` ended; DeathError where it was lost."""
    if not is_death(error):
        return find_own_error(error) or unwrap_error(error, who)
    how = describe_death(error)
    if who == "controller" and how == NODE_IS_GONE:  # which is the driver's own
        return unwrap_error(LocalRayletDiedError(), who)
    known = unwrap_error(error, who)
    death = DeathError(str(known) if how == MEMORY_IS_FULL else f"the {who} died: {how}")
    if said := last_words(error):
        death.add_note(said)
    return death


def _outcome(ref: ObjectRef[T], name: str) -> T:
    """Return what the actor of that `name` answered; raises why it could not."""
    try:
        return ray.get(ref)
    except RayError as error:
        raise unwrap_error(error, name) from None


def _value_of(ref: ObjectRef[T]) -> T | None:
    """Return the value of `ref`; None where it is not there."""
    with contextlib.suppress(RayError):
        return ray.get(ref, timeout=0)
    return None


def _list_done(refs: Iterable[ObjectRef[T]]) -> list[ObjectRef[T]]:
    return wait([*refs], timeout_seconds=0)[0]


def _explain_taken(run: str) -> str:
    return (
        f"a run named {run} is going on on this cluster: stop it (`ray job list`, `ray job stop`), "
        "wait for its end, or give this one another name"
    )


def _wait_until_free(prefix: str, otherwise: str, timeout_seconds: float = _NAME_TIMEOUT_SECONDS) -> None:
    """Wait until no actor whose name begins so is left on the cluster; raises RunError(otherwise) when they stay."""
    deadline = time.monotonic() + timeout_seconds
    while any(name.startswith(prefix) for name in list_named_actors()):
        if time.monotonic() > deadline:
            raise RunError(otherwise)
        time.sleep(_POLL_SECONDS)
