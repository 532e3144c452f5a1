"""From the learner's events to the screen and the run's directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rayqd.actors.run_actors import RunActors
from rayqd.config import Config
from rayqd.console.progress import Progress, Silence, duration, eval_line, waiting_line
from rayqd.errors import PlacementError, StorageError, WorkerError
from rayqd.report.write import Report
from rayqd.runs.directory import RunDirectory

_POLL_SECONDS = 0.5
_LEARNER_START_SECONDS = 120.0  # from its place in the cluster to its first word


class Follower:
    """Shows and keeps what happens in a run."""

    def __init__(
        self, roles: RunActors, config: Config, run_dir: RunDirectory, progress: Progress, report: Report
    ) -> None:
        self._roles = roles
        self._config = config
        self._report = report
        self._run_dir = run_dir
        self._progress = progress
        self._began = time.monotonic()
        self._timeout_seconds = config.ray.placement_timeout_seconds
        self._learner_ready = False
        self._training = self._stopped = False
        self._step = 0
        self._silence = Silence()
        self._num_seen = 0
        self._start_seconds: dict[str, float] = {}
        self._learner_seconds = 0.0

    def until(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of `kinds`, once everything before it is shown and kept; "finished" is a run's last."""
        try:
            while True:
                self._look_at_starting_roles()
                if event := self._take_events(_POLL_SECONDS, kinds):
                    return event
                self._tell_silence()
        except KeyboardInterrupt:
            self._stop()
            raise

    def result(self, rows: list[dict[str, Any]], num_steps: int, total_seconds: float) -> dict[str, Any]:
        """What a run of `num_steps` leaves: the arms' rows, and the seconds of each role's work and start."""
        seconds = {"total": total_seconds, **self._roles.role_seconds(), "learner": self._learner_seconds}
        return {
            "name": self._config.name,
            "rows": rows,
            "seconds": {role: round(value, 1) for role, value in seconds.items()},
            "start_seconds": {role: round(value, 1) for role, value in self._start_seconds.items()},
            "num_steps": num_steps,
        }

    def _stop(self) -> None:
        """Let the learner keep the last step it has done, and hear of all steps up to that: they are not done again."""
        if not self._training:
            return
        self._progress.status("stopping: keeping a checkpoint of the last step (Ctrl-C again: without)")
        try:
            self._roles.stop()
            while not (self._stopped or self._take_events(_POLL_SECONDS, ("finished",))):
                pass
        except WorkerError:  # the signal was for all of them, and they were faster
            self._progress.say("stopped without a checkpoint of the last step: the run's processes were ended too")

    def _take_events(self, timeout_seconds: float, kinds: Sequence[str] = ()) -> dict[str, Any] | None:
        for event in self._roles.events(self._num_seen, timeout_seconds):
            self._num_seen += 1
            getattr(self, f"_on_{event['event']}")(event)
            self._silence.end()
            if event["event"] in kinds:
                return event
        return None

    def _tell_silence(self) -> None:
        if self._training and (seconds := self._silence.to_tell()):
            step = self._step + 1 if self._step < self._config.learner.steps else None
            self._progress.say(waiting_line(step, self._roles.list_awaited_workers(), seconds))

    def _on_finished(self, event: dict[str, Any]) -> None:
        """Carries the result's rows, which nobody needs to see before all is done."""

    def _on_ready(self, event: dict[str, Any]) -> None:
        self._learner_ready = True
        self._run_dir.forget_metrics_after(event["step"])
        self._progress.say(_ready(event["role"], time.monotonic() - self._began, event["place"]))

    def _on_start(self, event: dict[str, Any]) -> None:
        if event["step"]:
            self._progress.say(f"resuming after step {event['step']}")
        self._training = True
        self._step = event["step"]
        self._progress.begin_steps()
        self._upload()

    def _on_eval(self, event: dict[str, Any]) -> None:
        self._run_dir.append(event)
        self._progress.say(eval_line(event))
        self._report.write()

    def _on_step(self, event: dict[str, Any]) -> None:
        self._run_dir.append(event)
        self._step = event["step"]
        self._learner_seconds += event["learner_seconds"]
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
        """The driver's part of what a resumed run needs; the learner uploads the rest."""
        try:
            self._run_dir.upload()
        except StorageError as error:
            self._progress.say(f"{error}; it is kept in {self._run_dir.path}, and the next checkpoint tries again")

    def _look_at_starting_roles(self) -> None:
        for name, seconds in self._roles.collect_ready().items():
            self._start_seconds[name] = seconds
            self._progress.say(_ready(name, seconds, self._roles.node_of(name)))
        waited = time.monotonic() - self._began
        unplaced = self._roles.list_unplaced()
        if not self._learner_ready and waited > self._timeout_seconds + _LEARNER_START_SECONDS:
            unplaced.append("learner")  # Ray Train asks again and again, and does not tell
        if unplaced and waited > self._timeout_seconds:
            raise PlacementError(
                f"the cluster made no room for {', '.join(unplaced)} within ray.placement_timeout_seconds="
                f"{self._timeout_seconds:g}: add nodes, wait until others are done, or raise it"
            )
        waiting = self._roles.list_starting() + ([] if self._learner_ready else ["learner"])
        if waiting:
            self._progress.status(f"starting {', '.join(waiting)}  {duration(waited)}")


def _ready(name: str, seconds: float, place: str) -> str:
    return f"{name} ready after {seconds:.0f} s{' on ' if place else ''}{place}"
