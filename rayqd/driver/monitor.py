"""From the learner's events to the screen and the run's directory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rayqd.actors.run_actors import RunActors
from rayqd.audit import AuditEvent
from rayqd.config import Config
from rayqd.console.progress import InactivityTimer, Progress, cut_line, duration, eval_line, waiting_line
from rayqd.console.say import ReaderGone
from rayqd.driver.restarts import Restarts
from rayqd.errors import DeathError, PlacementError, StallError, WorkerError
from rayqd.events import (
    STOPPING,
    CheckpointEvent,
    EvalEvent,
    Event,
    FinishedEvent,
    NoticeEvent,
    QuarantineEvent,
    ReadyEvent,
    StartEvent,
    StatusEvent,
    StepEvent,
    StoppedEvent,
    TimedEvent,
)
from rayqd.report.write import Report
from rayqd.runs.directory import RunDirectory
from rayqd.runs.result_file import DistillResult, Fault
from rayqd.runs.startup import Startup, make_startup
from rayqd.runs.time_parts import StepTimes
from rayqd.spans import Span, SpansEvent
from rayqd.trackers.trackers import Trackers

_POLL_SECONDS = 0.5
_STOP_SECONDS = 6.0  # for the learner to hear that it is to stop; a process must be gone 10 s after a SIGTERM
_LEARNER_START_SECONDS = 120.0  # from its place in the cluster to its first word

Kind = TypeVar("Kind", bound=Event)


class Monitor:
    """Shows and keeps what happens in a run."""

    def __init__(
        self,
        actors: RunActors,
        config: Config,
        run_dir: RunDirectory,
        progress: Progress,
        report: Report,
        trackers: Trackers | None = None,
    ) -> None:
        """Follow `actors`; `trackers` are told every step and evaluation."""
        self._trackers = trackers
        self._actors = actors
        self._config = config
        self._report = report
        self._run_dir = run_dir
        self._progress = progress
        self._began = time.monotonic()  # since when the processes may load, or those that were started again
        self._processes_began = actors.began
        self._restarts = Restarts(config.ray.max_restarts)
        self._timeout_seconds = config.ray.placement_timeout_seconds
        self._learner_ready = False
        self._training = self._stopped = self._finished = self._is_restarted = False
        self._step = 0
        self._max_staleness: int | None = None  # that rollout.max_staleness=auto has come to
        self._inactivity = InactivityTimer()
        self._slow_start = InactivityTimer()
        self._has_explained_cut = False
        self._num_seen = 0
        self._start_seconds: dict[str, float] = {}
        self._engines: dict[str, str] = {}
        self._spans: list[Span] = []
        self._steps = StepTimes()
        self._faults: list[tuple[float, int, str]] = []  # seconds since the epoch, steps done, what it was

    def until(self, *kinds: type[Kind]) -> Kind:
        """Return the next event of one of `kinds`, once everything before it is shown and kept."""
        try:
            while True:
                try:
                    self._check_starting_roles()
                    for event in self._new_events(_POLL_SECONDS):
                        if isinstance(event, kinds):
                            return event
                    self._report_inactivity()
                except DeathError as death:
                    self._restart(death)
        except KeyboardInterrupt:  # Ctrl-C, SIGTERM, or nobody reads what is printed
            self._run_dir.mirror.hurry()
            self.stop()
            raise

    def result(self, finished: FinishedEvent, total_seconds: float) -> DistillResult:
        """Return what a run leaves that ended so: the arms, and the seconds of each role's work and start."""
        seconds = {"total": total_seconds, **self._actors.role_seconds(), "learner": self._steps.work}
        ended = time.time()
        return DistillResult(
            name=self._config.name,
            rows=tuple(finished.rows),
            seconds={role: round(value, 1) for role, value in seconds.items()},
            start_seconds={role: round(value, 1) for role, value in self._start_seconds.items()},
            num_steps=finished.num_steps,
            exported_step=finished.exported_step,
            reason=finished.reason,
            max_staleness=self._max_staleness,
            engines=self._engines,
            finished=round(ended, 1),
            parts=self._steps.split(ended - total_seconds, ended),
            faults=tuple(
                Fault(seconds=round(when - ended + total_seconds, 1), step=step, text=text)
                for when, step, text in self._faults
            ),
            deaths=dict(sorted(self._restarts.deaths.items())),
        )

    def startup(self, began: float, own_spans: Sequence[Span]) -> Startup:
        """Return the start-up table of a run that began at `began` and ends now; `own_spans` are this process's."""
        times = [each for each in (self._steps.first, self._steps.last) if each is not None]
        return make_startup(began, times, [*own_spans, *self._spans], time.time())

    def collect_spans(self) -> None:
        """Ask for what only the controller knows, which must still be there."""
        self._spans += self._actors.role_spans()

    def _restart(self, death: DeathError) -> None:
        """Have learner and controller start again, if that may still help; raises WorkerError if not."""
        self._restarts.allow(death, self._step)
        self._faults.append((time.time(), self._step, str(death)))
        self._progress.say(f"{death}; it is started again and goes on from the last checkpoint")
        self._actors.restart()
        self._num_seen = 0
        self._began = self._processes_began = time.monotonic()
        self._training = self._learner_ready = False
        self._is_restarted = True

    def stop(self) -> None:
        """Let the learner keep the last step it has done, and hear of all steps up to that: they are not done again."""
        if not self._training:
            return
        self._progress.status("stopping: keeping a checkpoint of the last step (Ctrl-C again: without)")
        try:
            self._actors.stop()
            deadline = time.monotonic() + _STOP_SECONDS
            while not (self._stopped or self._finished):
                with contextlib.suppress(ReaderGone):  # a terminal that closes sends a signal first
                    for event in self._new_events(_POLL_SECONDS):
                        if isinstance(event, StatusEvent) and event.text == STOPPING:
                            deadline = math.inf  # it is at it, and writing takes what it takes
                if time.monotonic() > deadline:
                    raise StallError(f"the learner did not answer within {_STOP_SECONDS:g} s")
        except StallError as error:
            self._progress.say(f"stopped without a checkpoint of the last step: {error}")
        except WorkerError:  # the signal was for all of them, and they were faster
            self._progress.say("stopped without a checkpoint of the last step: the run's processes were ended too")

    def _new_events(self, timeout_seconds: float) -> Iterator[Event]:
        """Yield what has happened since the last call, each event once it is shown and kept."""
        for timed in self._actors.events(self._num_seen, timeout_seconds):
            self._num_seen += 1
            self._keep(timed)
            self._show(timed.event)
            self._inactivity.reset()
            yield timed.event

    def _report_inactivity(self) -> None:
        if self._training and (seconds := self._inactivity.seconds_to_report()):
            step = self._step + 1 if self._step < self._config.learner.steps else None
            self._progress.say(waiting_line(step, self._actors.list_awaited_workers(), seconds))

    def _keep(self, timed: TimedEvent) -> None:
        match timed.event:
            case StepEvent() | EvalEvent() | QuarantineEvent() as event:
                self._say(self._run_dir.append(event, timed.time))
                if self._trackers and not isinstance(event, QuarantineEvent):
                    self._trackers.record(event)
                if isinstance(event, StepEvent):
                    self._steps.add(timed.time, event.learner.learner_seconds, event.learner.wait_seconds)
            case SpansEvent(spans=spans):
                self._spans += spans
            case AuditEvent(steps=steps):
                self._say(self._run_dir.audit.append(steps))
            case ReadyEvent(step=step, measures_again=again):
                self._say(self._run_dir.forget_metrics_after(step, and_evaluation=again))
                self._run_dir.audit.forget_after(step)
            case _:
                pass

    def _say(self, line: str | None) -> None:
        if line:
            self._progress.say(line)

    def _show(self, event: Event) -> None:
        match event:
            case ReadyEvent(role=role, node=node, step=step):
                self._learner_ready = True
                if step > 0:  # it goes on from a checkpoint, perhaps where the student writes already
                    self._actors.start_engines()
                seconds = time.monotonic() - self._processes_began
                self._progress.say(
                    f"{role} is back after {seconds:.0f} s" if self._is_restarted else _ready(role, seconds, node)
                )
            case StartEvent(step=step, max_staleness=chosen):
                self._begin_training(step, chosen)
            case StepEvent(learner=learner):
                self._step, self._max_staleness = learner.step, learner.max_staleness
                self._actors.start_engines()
                self._progress.step(event)
                self._explain_cut(learner.cut_share)
            case EvalEvent():
                self._progress.say(eval_line(event))
                self._report.write()
            case CheckpointEvent(path=path):
                self._progress.status(f"checkpoint {path}")
                self._upload()
            case QuarantineEvent(step=step, index=index, reason=reason):
                self._progress.say(f"step {step}: sequence {index} is left out: {reason}")
            case StatusEvent(text=text):
                self._progress.status(text)
            case NoticeEvent(text=text, died=worker, is_fault=is_fault):
                if worker or is_fault:
                    self._faults.append((time.time(), self._step, text))
                if worker:
                    self._restarts.count(worker)
                self._progress.say(text)
            case StoppedEvent(step=step):
                self._end_early(step)
            case SpansEvent() | AuditEvent():
                pass
            case FinishedEvent(num_steps=num_steps, reason=reason):  # its rows are shown when all is done
                self._finished = True
                if reason:
                    self._progress.say(f"training ended after step {num_steps}: {reason}")

    def _explain_cut(self, share: float | None) -> None:
        """Say what `cut` in a step's line means, the first time that there is something of it."""
        if share and not self._has_explained_cut:
            self._has_explained_cut = True
            self._progress.say(cut_line(self._config.rollout.max_new_tokens))

    def _begin_training(self, step: int, max_staleness: int | None) -> None:
        if step or self._is_restarted:
            self._progress.say(f"resuming after step {step}")
        self._training = True
        self._step, self._max_staleness = step, max_staleness
        self._progress.begin_steps()
        self._upload()

    def _end_early(self, step: int | None) -> None:
        self._stopped = True
        if step:
            self._progress.say(f"stopped after step {step}, of which a checkpoint is kept")
            self._say(self._run_dir.mirror.upload_last())

    def _upload(self) -> None:
        """Upload the driver's part of what a resumed run needs; the learner uploads the rest."""
        self._say(self._run_dir.mirror.begin_upload())

    def _check_starting_roles(self) -> None:
        for name, started in self._actors.collect_ready().items():
            self._start_seconds[name] = started.seconds
            self._spans += started.spans
            if started.description:
                self._engines[name] = started.description
            self._progress.say(_ready(name, started.seconds, started.node, started.description))
        waited = time.monotonic() - self._began
        unplaced = self._actors.list_unplaced()
        if not self._learner_ready and waited > self._timeout_seconds + _LEARNER_START_SECONDS:
            unplaced.append("learner")  # Ray Train asks again and again, and does not tell
        if unplaced and waited > self._timeout_seconds and not self._actors.wait_for_room():
            self._report_slow_start(unplaced)
        elif unplaced and waited > self._timeout_seconds:
            raise PlacementError(
                f"the cluster made no room for {', '.join(unplaced)} within ray.placement_timeout_seconds="
                f"{self._timeout_seconds:g}: add nodes, wait until others are done, or raise it"
            )
        waiting = self._actors.list_starting() + ([] if self._learner_ready else ["learner"])
        if waiting:
            self._progress.status(f"starting {', '.join(waiting)}  {duration(waited)}")

    def _report_slow_start(self, names: Sequence[str]) -> None:
        if seconds := self._slow_start.seconds_to_report():
            waiting = waiting_line(None, names, seconds)
            self._progress.say(f"{waiting}: the cluster has room for it, this machine is slow to start it")


def _ready(name: str, seconds: float, node: str, description: str = "") -> str:
    with_what = f" with {description}" if description else ""
    return f"{name} ready after {seconds:.0f} s{' on ' if node else ''}{node}{with_what}"
