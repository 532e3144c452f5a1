"""From the learner's events to the screen and the run's directory."""

from __future__ import annotations

import time
from typing import Any

from rayqd.actors.roles import Roles
from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.observe.progress import Progress, duration
from rayqd.observe.run_directory import RunDirectory

_POLL_SECONDS = 0.5
_LEARNER_START_SECONDS = 120.0  # from its place in the cluster to its first word


class Follower:
    """Shows and keeps what happens, until the learner has finished."""

    def __init__(self, roles: Roles, config: Config, run_dir: RunDirectory, progress: Progress) -> None:
        self._roles = roles
        self._run_dir = run_dir
        self._progress = progress
        self._began = time.monotonic()
        self._timeout_seconds = config.ray.placement_timeout_seconds
        self._learner_ready = False
        self._num_seen = 0
        self.learner_seconds = 0.0

    def until_finished(self) -> dict[str, Any]:
        """The learner's last event, which carries the result's rows."""
        try:
            while True:
                self._look_at_starting_roles()
                if finished := self._take_events(_POLL_SECONDS):
                    return finished
        except KeyboardInterrupt:
            # A checkpoint may be there of steps not heard of yet; a resumed run will not do them again.
            self._take_events(timeout_seconds=0.1)
            raise

    def _take_events(self, timeout_seconds: float) -> dict[str, Any] | None:
        for event in self._roles.events(self._num_seen, timeout_seconds):
            self._num_seen += 1
            if event["event"] == "finished":
                return event
            getattr(self, f"_on_{event['event']}")(event)
        return None

    def _on_ready(self, event: dict[str, Any]) -> None:
        self._learner_ready = True
        self._run_dir.forget_metrics_after(event["step"])
        self._progress.say(_ready(event["role"], time.monotonic() - self._began, event["place"]))

    def _on_start(self, event: dict[str, Any]) -> None:
        if event["step"]:
            self._progress.say(f"resuming after step {event['step']}")
        self._progress.begin_steps()

    def _on_eval(self, event: dict[str, Any]) -> None:
        self._run_dir.append(event)
        kl, perplexity = event["kl_to_teacher"], event["perplexity"]
        self._progress.say(f"{event['arm']}: KL to teacher {kl:.4f}, perplexity {perplexity:.3f}")

    def _on_step(self, event: dict[str, Any]) -> None:
        self._run_dir.append(event)
        self.learner_seconds += event["learner_seconds"]
        self._progress.step(event)

    def _on_checkpoint(self, event: dict[str, Any]) -> None:
        self._progress.status(f"checkpoint {event['path']}")

    def _on_quarantine(self, event: dict[str, Any]) -> None:
        self._run_dir.append(event, "quarantine.jsonl")
        self._progress.say(
            f"step {event['step']}: the teacher answered inf or nan to sequence {event['index']}; left out"
        )

    def _on_status(self, event: dict[str, Any]) -> None:
        self._progress.status(event["text"])

    def _look_at_starting_roles(self) -> None:
        for name, seconds in self._roles.newly_ready().items():
            self._progress.say(_ready(name, seconds, self._roles.place(name)))
        waited = time.monotonic() - self._began
        unplaced = self._roles.unplaced()
        if not self._learner_ready and waited > self._timeout_seconds + _LEARNER_START_SECONDS:
            unplaced.append("learner")  # Ray Train asks again and again, and does not tell
        if unplaced and waited > self._timeout_seconds:
            raise PlacementError(
                f"the cluster made no room for {', '.join(unplaced)} within ray.placement_timeout_seconds="
                f"{self._timeout_seconds:g}: add nodes, wait until others are done, or raise it"
            )
        waiting = self._roles.starting() + ([] if self._learner_ready else ["learner"])
        if waiting:
            self._progress.status(f"starting {', '.join(waiting)}  {duration(waited)}")


def _ready(name: str, seconds: float, place: str) -> str:
    return f"{name} ready after {seconds:.0f} s{' on ' if place else ''}{place}"
