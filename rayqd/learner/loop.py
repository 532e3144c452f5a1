"""The training loop: resume, step to the last step, save checkpoints, publish the new weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

from rayqd.config import Config
from rayqd.data.plan import make_plan, steps_ahead
from rayqd.errors import WorkerError
from rayqd.events import (
    STOPPING,
    Arm,
    ArmKind,
    CheckpointEvent,
    EvalEvent,
    Fidelity,
    LearnerStep,
    NoticeEvent,
    StartEvent,
    StatusEvent,
)
from rayqd.learner.audit_trail import AuditTrail, digest_after_step
from rayqd.learner.bad_steps import keep_share
from rayqd.learner.benchmarks import StudentBenchmarks, lack_benchmarks
from rayqd.learner.checkpointer import Checkpointer
from rayqd.learner.engine_check import check_engines
from rayqd.learner.feed import Feed
from rayqd.learner.learner import Learner
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.runs.paths import BAD_STEPS
from rayqd.spans import record_span, span
from rayqd.types import Batch


class Working(Protocol):
    """Surrounds a step's computation: `StallWatch.working`."""

    def __call__(self, *, is_first: bool) -> AbstractContextManager[None]:
        """Return what surrounds it."""
        ...


def unwatched(*, is_first: bool) -> AbstractContextManager[None]:
    """Surround a computation that nobody looks at."""
    return nullcontext()


def train(
    learner: Learner,
    feed: Feed,
    checkpointer: Checkpointer,
    config: Config,
    *,
    evaluate: Callable[[], Fidelity],
    benchmarks: StudentBenchmarks,
    working: Working = unwatched,
) -> None:
    """Train from the last checkpoint, if there is one, to the last step, or to where the evaluations end it.

    Only rank 0 writes, publishes and evaluates; where the student is sharded, the others join its collectives.
    `working` surrounds the computation of every step, and is told which one is the first, which may compile.
    """
    start = checkpointer.resume()
    joins = learner.group.joins_collectives
    if joins:
        feed.when_stopping(partial(checkpointer.stop, lambda: feed.report(StatusEvent(text=STOPPING))))
    feed.report(StartEvent(step=start, max_staleness=checkpointer.trail.max_staleness))
    if checkpointer.trail.all.steps:
        feed.report(checkpointer.trail.all)
    if learner.group.is_rank0:
        for remark in checkpointer.remarks:
            feed.report(NoticeEvent(text=remark))
    if joins and config.is_on_policy:
        with span("first publication"):
            feed.publish(start, collect_rollout_weights(learner.student, config))
    if _lacks_measurement(start, learner, checkpointer, config):
        _measure(feed, checkpointer, learner, evaluate, benchmarks)
    is_to_end = checkpointer.is_to_end()
    for step in range(start, config.learner.steps):
        if is_to_end:
            break
        version = step + 1
        last = version == config.learner.steps
        with checkpointer.step(version):
            is_first = step == start
            _step(learner, feed, config, checkpointer.trail, step, working, is_first=is_first)
            if joins and not last and _is_written_with(version, config):
                feed.publish(version, collect_rollout_weights(learner.student, config))
            is_saved = last or version % config.checkpoint.every == 0
            if joins and is_saved:
                with span("checkpoint") if last else nullcontext():
                    path = checkpointer.save(version)
                feed.report(CheckpointEvent(step=version, path=str(path)))
            if (done := checkpointer.trail.newest) is not None and done.steps[0].step == version:
                feed.report(done)
        if is_measured(version, config):
            _measure(feed, checkpointer, learner, evaluate, benchmarks)
            is_to_end = checkpointer.is_to_end()
            if joins and is_to_end and not is_saved:
                path = checkpointer.save_between_steps()
                feed.report(CheckpointEvent(step=version, path=str(path)))


def is_measured(version: int, config: Config) -> bool:
    """Return whether the weights after `version` steps are evaluated, beside what the end of the run does."""
    if version == config.learner.steps:
        return config.tracks_evaluations or config.runs_tasks(version)
    return config.eval.every > 0 and version % config.eval.every == 0


def _lacks_measurement(start: int, learner: Learner, checkpointer: Checkpointer, config: Config) -> bool:
    """Return, to every worker the same, whether a run was ended before the weights that it resumes were measured.

    What decides nothing is measured later only if it has benchmarks: the rest the end of the run measures anyway.
    """
    if not start or not is_measured(start, config):
        return False
    if checkpointer.evaluations.decide:
        return checkpointer.lacks_evaluation()
    group = learner.group
    return config.runs_tasks(start) and group.all_reduce_max(group.is_rank0 and lack_benchmarks(start, config)) == 1


def _measure(
    feed: Feed,
    checkpointer: Checkpointer,
    learner: Learner,
    evaluate: Callable[[], Fidelity],
    benchmarks: StudentBenchmarks,
) -> None:
    """Evaluate the weights as they are now; they are kept where they are the best."""
    fidelity, step = None, checkpointer.num_steps
    if learner.group.joins_collectives:
        results = benchmarks.run(step)
        fidelity = replace(evaluate(), tasks=results.values)
        arm = Arm(kind=ArmKind.DISTILLED, step=step)
        feed.report(EvalEvent(step=step, arm=arm, fidelity=fidelity, items=results.items))
    if checkpointer.evaluations.decide:
        checkpointer.add_evaluation(fidelity)


def _is_written_with(version: int, config: Config) -> bool:
    """Return whether the student writes anything with this version of its weights; what it does not, is not sent."""
    plan = make_plan(config, [1] * len(config.data.each_source))  # which examples does not matter
    return plan.needs_student(steps_ahead(version, config.rollout.most_staleness, config.learner.steps))


def _step(
    learner: Learner,
    feed: Feed,
    config: Config,
    trail: AuditTrail,
    step: int,
    working: Working,
    *,
    is_first: bool,
) -> None:
    start, began = time.time(), time.perf_counter()
    batch = feed.batch(step)
    ready = time.perf_counter()
    staleness = _check_staleness(batch, step, config)
    error = check_engines(learner.student, batch.probes, config.model.dtype)
    with working(is_first=is_first):
        result = learner.step(step, batch.share, batch.num_loss_tokens)
    done = time.perf_counter()
    if batch.audit:
        trail.add(replace(batch.audit, weights=digest_after_step(learner), skipped=result.is_skipped))
    if result.is_skipped:
        _tell_skipped(learner, feed, config, step, batch)
    if is_first:
        record_span("wait for first batch", start, start + ready - began)
        record_span("first step", start + ready - began, start + done - began)
    feed.report(
        LearnerStep(
            step=step + 1,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            num_tokens=batch.num_tokens,
            num_loss_tokens=batch.num_loss_tokens,
            num_on_policy=batch.num_on_policy,
            staleness=staleness,
            wait_seconds=ready - began,
            learner_seconds=done - ready,
            learner_tokens_per_second=batch.num_tokens / (done - ready),
            engine_error=error,
            mean_completion_tokens=batch.num_written_tokens / batch.num_on_policy if batch.num_on_policy else None,
            cut_share=batch.num_cut / batch.num_on_policy if batch.num_on_policy else None,
            max_staleness=batch.max_staleness,
        )
    )


def _tell_skipped(learner: Learner, feed: Feed, config: Config, step: int, batch: Batch) -> None:
    directory = config.run_dir / BAD_STEPS
    try:
        keep_share(directory, step + 1, batch.share)
        where = f"its sequences are in {directory}"
    except OSError as error:
        where = f"its sequences could not be kept in {directory} ({error.strerror})"
    if learner.group.is_rank0:
        text = f"step {step + 1}: the gradient is inf or nan; the step is skipped, nothing has changed; {where}"
        feed.report(NoticeEvent(text=text, is_fault=True))


def _check_staleness(batch: Batch, step: int, config: Config) -> int:
    """Return how many versions the oldest rollout lags behind `step`; raises WorkerError where they are too many."""
    staleness = step - batch.policy_version if batch.policy_version is not None else 0
    bound = config.rollout.first_staleness if batch.max_staleness is None else batch.max_staleness
    if not 0 <= staleness <= bound:
        raise WorkerError(f"step {step} got rollouts {staleness} versions old; rollout.max_staleness={bound}")
    return staleness
