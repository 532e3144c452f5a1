"""From the learner's events to the screen and the run's directory."""

from __future__ import annotations

import time
from typing import Any

from rayqd.actors.roles import Roles
from rayqd.config import Config
from rayqd.errors import PlacementError, StorageError
from rayqd.observe.progress import Progress, duration
from rayqd.observe.run_directory import RunDirectory

_POLL_SECONDS = 0.5


class Follower:
    """Shows and keeps what happens, until the learner has finished."""

    def __init__(self, roles: Roles, config: Config, run_dir: RunDirectory, progress: Progress) -> None:
        self._roles = roles
        self._run_dir = run_dir
        self._progress = progress
        self._began = time.monotonic()
        self._timeout_seconds = config.ray.placement_timeout_seconds
        self._learner_ready = False
        self._training = self._stopped = False
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
            self._stop()
            raise

    def _stop(self) -> None:
        """Let the learner keep the last step it has done, and hear of all steps up to that: they are not done again."""
        if not self._training:
            return
        self._progress.status("stopping: keeping a checkpoint of the last step (Ctrl-C again: without)")
        self._roles.stop()
        while not (self._stopped or self._take_events(_POLL_SECONDS)):
            pass

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
        self._progress.say(f"{event['role']} ready after {time.monotonic() - self._began:.0f} s")

    def _on_start(self, event: dict[str, Any]) -> None:
        if event["step"]:
            self._progress.say(f"resuming after step {event['step']}")
        self._training = True
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
        self._upload()

    def _on_notice(self, event: dict[str, Any]) -> None:
        self._progress.say(event["text"])

    def _on_stopped(self, event: dict[str, Any]) -> None:
        self._stopped = True
        if event["step"]:
            self._progress.say(f"stopped after step {event['step']}, of which a checkpoint is kept")
            self._upload()

    def _on_quarantine(self, event: dict[str, Any]) -> None:
        self._run_dir.append(event, "quarantine.jsonl")
        self._progress.say(
            f"step {event['step']}: the teacher answered inf or nan to sequence {event['index']}; left out"
        )

    def _on_status(self, event: dict[str, Any]) -> None:
        self._progress.status(event["text"])

    def _upload(self) -> None:
        """Metrics of the steps that the checkpoint has; the learner has uploaded that."""
        try:
            self._run_dir.upload()
        except StorageError as error:
            self._progress.say(f"{error}; it is kept in {self._run_dir.path}, and the next checkpoint tries again")

    def _look_at_starting_roles(self) -> None:
        for name, seconds in self._roles.newly_ready().items():
            self._progress.say(f"{name} ready after {seconds:.0f} s")
        waited = time.monotonic() - self._began
        unplaced = self._roles.unplaced()
        if unplaced and waited > self._timeout_seconds:
            raise PlacementError(
                f"the cluster made no room for {', '.join(unplaced)} within ray.placement_timeout_seconds="
                f"{self._timeout_seconds:g}: add nodes, wait until others are done, or raise it"
            )
        waiting = self._roles.starting() + ([] if self._learner_ready else ["learner"])
        if waiting:
            self._progress.status(f"starting {', '.join(waiting)}  {duration(waited)}")
