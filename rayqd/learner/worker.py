"""The life of one learner worker, from where the run is to its export. Knows nothing of Ray.

storage ─► checkpoints ─► untrained arms ─► student ─► training loop ─► export, result
each       each           rank 0            each       each             rank 0
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rayqd.config import Config
from rayqd.evals.heldout import Heldout
from rayqd.events import FinishedEvent, NoticeEvent, ReadyEvent, StatusEvent
from rayqd.export.logits import short_row
from rayqd.learner.benchmarks import StudentBenchmarks, lack_benchmarks
from rayqd.learner.checkpoint import Checkpoints
from rayqd.learner.checkpointer import Checkpointer
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.evaluations import Evaluations
from rayqd.learner.feed import Feed
from rayqd.learner.finish import finish, finish_on_other_rank
from rayqd.learner.initialization import Initialization
from rayqd.learner.learner import Learner
from rayqd.learner.loop import is_measured, train, unwatched
from rayqd.learner.memory_fit import fit_limit
from rayqd.learner.upload import CheckpointUploader
from rayqd.losses.output_head import Head
from rayqd.model.load import device, load_head
from rayqd.model.source import student_directory, teacher_directories
from rayqd.runs.ending import describe_ending
from rayqd.runs.paths import CHECKPOINTS
from rayqd.runs.storage.stored_run import StoredRun
from rayqd.spans import SpansEvent, span, take_spans
from rayqd.stall import StallWatch


class LearnerWorker:
    """One of the workers of `group`; where the student is sharded, all of them join the collectives of rank 0."""

    def __init__(
        self, config: Config, feed: Feed, group: SingleProcess, *, node: str = "", watch: StallWatch | None = None
    ) -> None:
        """Take the run's view and the other workers; `node` is what the user calls this machine.

        `watch` ends this process where no microbatch comes to an end.
        """
        self._watch = watch
        self._config = config
        self._feed = feed
        self._group = group
        self._node = node
        self._source = student_directory(config)
        self._initialization = Initialization(config)
        self._checkpoints = Checkpoints(config.run_dir / CHECKPOINTS, config.checkpoint.keep)
        self._uploader = self._make_uploader()

    def run(self) -> None:
        """Train to the last step and, on rank 0, export and report the result."""
        teacher_heads = self._load_teacher_heads()
        if self._group.is_rank0:
            self._fetch_first()
            self._set_damaged_aside()
        self._report_ready()
        heldout = self._get_heldout(teacher_heads)
        if self._group.is_rank0:
            self._initialize(heldout)
        self._group.barrier()
        if self._uploader and not self._group.is_rank0:
            self._uploader.fetch(is_rank0=False)
        with span("load student"):
            learner = self._make_learner(teacher_heads)
        learner.limit.tell = self._notice
        with span("measure memory"):
            fit_limit(learner.student, learner.limit)
        self._report_spans()
        evaluate = partial(heldout.evaluate, learner.student)
        working = unwatched
        if self._watch:
            learner.on_progress, working = self._watch.beat, self._watch.working
        checkpointer = Checkpointer(learner, self._checkpoints, Evaluations(self._config))
        benchmarks = StudentBenchmarks(self._config, learner, self._feed, self._watch)
        train(
            learner,
            self._feed,
            checkpointer,
            self._config,
            evaluate=evaluate,
            benchmarks=benchmarks,
            working=working,
        )
        self._finish(learner, heldout, checkpointer)

    def _make_uploader(self) -> CheckpointUploader | None:
        stored = StoredRun.of(self._config)
        if stored is None:
            return None
        return CheckpointUploader(stored.folder, self._config.run_dir, self._checkpoints, self._notice, stored.patience)

    def _notice(self, text: str) -> None:
        self._feed.report(NoticeEvent(text=text))

    def _load_teacher_heads(self) -> list[Head | None]:
        """Return the output head of each teacher, [V, d]; None where it is the student's own, which is not rounded."""
        teachers = zip(self._config.teachers, teacher_directories(self._config), strict=True)
        return [
            None
            if teacher.is_student and self._config.quant.head == "none"
            else load_head(directory, self._config.model.dtype).to(device())
            for teacher, directory in teachers
        ]

    def _fetch_first(self) -> None:
        if self._uploader:
            self._uploader.fetch(is_rank0=True)
            self._checkpoints.on_saved = self._uploader.update
            self._checkpoints.on_flush = self._uploader.flush

    def _set_damaged_aside(self) -> None:
        """Go on from what is whole. What is not is told, and kept under another name."""
        for line in [*self._checkpoints.set_damaged_aside(), *self._initialization.set_damaged_aside()]:
            self._notice(line)

    def _report_ready(self) -> None:
        step = max([-1 if self._initialization.is_new else 0, *self._checkpoints.steps()])
        again = step > 0 and is_measured(step, self._config) and self._lacks_evaluation(step)
        self._feed.report(ReadyEvent(role="learner", step=step, node=self._node, measures_again=again))

    def _lacks_evaluation(self, step: int) -> bool:
        evaluations = Evaluations(self._config)
        evaluations.load(self._checkpoints.path(step))
        return evaluations.lack(step) if evaluations.decide else lack_benchmarks(step, self._config)

    def _get_heldout(self, teacher_heads: Sequence[Head | None]) -> Heldout:
        with span("wait for held-out rows"):
            rows = self._feed.heldout() if self._group.joins_collectives else []
        text = self._feed.text() if self._config.eval.text and self._group.joins_collectives else None
        return Heldout(rows, teacher_heads, self._config.learner.microbatch_tokens, text)

    def _initialize(self, heldout: Heldout) -> None:
        is_teacher = [teacher.is_student for teacher in self._config.teachers] == [True]
        measure_text = heldout.measure_text if is_teacher and heldout.has_text else None
        calibration = self._feed.calibration()
        row = short_row(heldout.rollouts)
        self._initialization.make(self._source, calibration, heldout.evaluate, self._feed.report, measure_text, row)
        if self._uploader:
            self._uploader.update()
            if self._config.learner.num_workers > 1:  # which get it from there
                self._uploader.wait()

    def _make_learner(self, teacher_heads: Sequence[Head | None]) -> Learner:
        student = self._initialization.load_student(self._source, self._group.mesh)
        heads = [student.head if head is None else head for head in teacher_heads]
        return Learner(student, heads, self._config, self._group)

    def _report_spans(self) -> None:
        self._feed.report(SpansEvent(spans=take_spans("learner")))

    def _finish(self, learner: Learner, heldout: Heldout, checkpointer: Checkpointer) -> None:
        if not self._group.joins_collectives:
            return
        exported_step = checkpointer.load_best()
        if not self._group.is_rank0:
            finish_on_other_rank(learner, heldout)
            return
        num_steps = checkpointer.num_steps
        reason = checkpointer.evaluations.reason_to_end if num_steps < self._config.learner.steps else None
        self._feed.report(StatusEvent(text="evaluating and exporting"))
        untrained, of_teacher = self._initialization.arms, self._initialization.teacher_text
        ending = describe_ending(self._config, num_steps, exported_step, reason)
        layers = self._initialization.layer_errors
        rows = finish(learner, heldout, untrained, self._source, self._config, of_teacher, ending, layers)
        if self._uploader:
            with span("upload"):
                self._uploader.finish()
        self._report_spans()
        self._feed.report(FinishedEvent(rows=rows, num_steps=num_steps, exported_step=exported_step, reason=reason))
