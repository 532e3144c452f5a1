"""The learner inside Ray Train, and its view of the rest of the run."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray import ObjectRef, train
from ray.exceptions import ObjectLostError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from rayqd.actors.balance import split_evenly
from rayqd.actors.node import localize_run_dir, remove_local_run_dir
from rayqd.actors.pulse import give_signs
from rayqd.actors.ray_types import fetch_all, put
from rayqd.actors.stalls import learner_label, watch_learner
from rayqd.actors.topology import describe_node
from rayqd.actors.trainer import LocalTrainer, make_backend
from rayqd.audit import SequenceAudit, StepAudit, audit_step
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.data.example_set import RunningText
from rayqd.errors import StorageError, WorkerError
from rayqd.events import NoticeEvent, ReportedEvent, StoppedEvent
from rayqd.metrics.fidelity import TaskResults
from rayqd.model.compile_cache import keep_compiled_code
from rayqd.model.import_transformers import import_peft, import_transformers
from rayqd.pipeline import MAX_ATTEMPTS, ScoredRef, lost_for_good
from rayqd.spans import process_start, record_span, span
from rayqd.types import Batch, IntArray, Rollout, ScoredRollout, WireTensor

if TYPE_CHECKING:
    from rayqd.actors.controller import ControllerHandle


class ControllerFeed:
    """The learner's view of the run: what it asks of the controller, and reports to it."""

    def __init__(
        self,
        controller: ControllerHandle,
        rank: int,
        world_size: int,
        all_true: Callable[[bool], bool] = bool,
        *,
        has_teachers: bool = False,
    ) -> None:
        """Take the controller, and which of how many workers this is; `has_teachers`: of a run with several."""
        self._has_teachers = has_teachers
        self._controller = controller
        self._rank = rank
        self._world_size = world_size
        self._all_true = all_true  # collective of the learner's workers
        self._published: ObjectRef[dict[str, WireTensor]] | None = None

    def batch(self, step: int) -> Batch:
        """Return this worker's share; of the other shares only the counts travel here.

        Where a part of the step was lost with a node, every worker drops its share and asks for the step made anew, so
        that all train on the same one.
        """
        for attempt in range(MAX_ATTEMPTS):
            refs = ray.get(self._controller.batch.remote(step, attempt))
            indices = split_evenly([r.rollout.summary.num_tokens for r in refs], self._world_size)[self._rank]
            share = _fetch([refs[i] for i in indices])
            if self._all_true(share is not None):
                probes, staleness = ray.get(self._controller.notes.remote(step))
                audit = _audit(step, refs, attempt, staleness, has_teachers=self._has_teachers)
                batch = make_batch(refs, share or [])
                return replace(batch, probes=probes, audit=audit, max_staleness=staleness)
        raise WorkerError(lost_for_good(f"step {step + 1}"))

    def heldout(self) -> list[ScoredRollout]:
        """Return the held-out rows with the teacher's payloads."""
        for attempt in range(MAX_ATTEMPTS):
            scored = _fetch(ray.get(self._controller.heldout.remote(attempt)))
            if scored is not None:
                return scored
        raise WorkerError(lost_for_good("the teacher's view of the held-out rows"))

    def text(self) -> RunningText | None:
        """Return the text whose perplexity is measured beside the held-out rows; None without one."""
        return ray.get(self._controller.text.remote())

    def calibration(self) -> list[IntArray]:
        """Return token ids of training rows, for what needs to see data before the first step."""
        return ray.get(self._controller.calibration.remote())

    def publish(self, version: int, tensors: Mapping[str, WireTensor]) -> None:
        """Have rollouts written with `tensors` from now on.

        They are held until the next publish: the object lives as long as this process refers to it.
        """
        if self._rank > 0:
            return
        self._published = put(dict(tensors))
        ray.get(self._controller.publish.remote(version, [self._published]))

    def run_tasks(self, version: int, tensors: Mapping[str, WireTensor]) -> TaskResults:
        """Have a rollout worker run the benchmarks with `tensors`, which rollouts go on without; empty off rank 0."""

        if self._rank > 0:
            return TaskResults()
        ref = put(dict(tensors))
        return ray.get(self._controller.run_tasks.remote(version, [ref]))

    def report(self, event: ReportedEvent) -> None:
        """Tell the controller of `event`, if this is rank 0."""
        if self._rank == 0:
            ray.get(self._controller.report.remote(event))

    def when_stopping(self, stop: Callable[[], int]) -> None:
        """Call `stop`, in a thread of its own, once the run is to end before its last step."""

        def wait() -> None:
            ray.get(self._controller.wait_for_stop.remote())
            step = None
            try:
                step = stop()
            except StorageError as error:
                self.report(NoticeEvent(text=str(error)))
            finally:
                self.report(StoppedEvent(step=step))

        threading.Thread(target=wait, name="stop", daemon=True).start()


def make_trainer(
    config: Config, controller: ControllerHandle, placement: Placement, storage: Path, *, alone: bool
) -> DataParallelTrainer:
    """Return the Ray Train run; each worker runs `learn`.

    `alone`: on a Ray of this machine that ends with the run.
    """
    gpus = placement.gpus_per_worker["learner"]

    def train_loop() -> None:
        learn(config, controller)

    return (LocalTrainer if alone else DataParallelTrainer)(
        train_loop,
        backend_config=make_backend(config.learner.num_workers, on_gpus=gpus > 0),
        scaling_config=train.ScalingConfig(
            num_workers=config.learner.num_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": placement.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
            label_selector=placement.selectors["learner"][: config.learner.num_workers],
        ),
        run_config=train.RunConfig(
            name=f"{config.run_dir.name}-{time.time_ns()}",
            storage_path=str(storage),
            worker_runtime_env={"env_vars": placement.env_vars},
        ),
    )


def learn(driver_config: Config, controller: ControllerHandle) -> None:
    """Run one worker of the learner, with the run seen through the controller and the others through torch."""
    record_span("process", process_start(), time.time())
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    give_signs(learner_label(driver_config, rank))
    keep_compiled_code()
    with span("import torch"):
        import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
    with span("import transformers"):
        import_transformers()
        from rayqd.learner.distributed import DistributedGroup, SingleProcess
        from rayqd.learner.worker import LearnerWorker
        from rayqd.model.load import device
    if driver_config.adapter.kind == "lora":
        with span("import PEFT"):
            import_peft()

    with span("wait for the driver's checks"):
        ray.get(controller.wait_for_data.remote())
    config = localize_run_dir(driver_config)
    group = SingleProcess()
    if world_size > 1:
        group = DistributedGroup(device(), is_sharded=config.adapter.kind == "none")
    feed = ControllerFeed(controller, rank, world_size, group.all_true, has_teachers=len(config.teachers) > 1)
    LearnerWorker(config, feed, group, node=describe_node(), watch=watch_learner(config, rank)).run()
    remove_local_run_dir(driver_config, config)


def make_batch(refs: list[ScoredRef], share: list[ScoredRollout]) -> Batch:
    """Return one worker's `share` of a step with what it must know of the whole, of which `refs` has the counts."""
    summaries = [r.rollout.summary for r in refs]
    written = [summary for summary in summaries if summary.policy_version is not None]
    versions = [summary.policy_version for summary in written if summary.policy_version is not None]
    return Batch(
        share=share,
        num_loss_tokens=sum(summary.num_loss_tokens for summary in summaries),
        num_tokens=sum(summary.num_tokens for summary in summaries),
        num_on_policy=len(versions),
        policy_version=min(versions, default=None),
        num_written_tokens=sum(summary.num_loss_tokens for summary in written),
        num_cut=sum(summary.is_cut for summary in written),
    )


def _fetch(refs: list[ScoredRef]) -> list[ScoredRollout] | None:
    """Fetch what the references stand for; None if some of it was lost with its node."""
    try:
        rollouts = fetch_all([r.rollout.ref for r in refs])
        payloads = fetch_all([r.payload for r in refs])
    except ObjectLostError:
        return None
    for ref, rollout in zip(refs, rollouts, strict=True):
        _check_tokens(ref, rollout)
    return [
        ScoredRollout(rollout=rollout, payload=payload) for rollout, payload in zip(rollouts, payloads, strict=True)
    ]


def _check_tokens(ref: ScoredRef, rollout: Rollout) -> None:
    """Raise WorkerError where the tokens that came are others than those that were sent."""
    summary = ref.rollout.summary
    if summary.tokens and rollout.digest != summary.tokens:
        raise WorkerError(
            f"sequence {summary.index} of step {summary.step + 1} came with other tokens than it was sent with "
            f"({ref.rollout.wrote.worker}): memory or network of a node is not sound; the same command goes on from "
            "the last checkpoint"
        )


def _audit(
    step: int, refs: list[ScoredRef], remade: int, max_staleness: int | None, *, has_teachers: bool
) -> StepAudit | None:
    """Return the record of a step; None where nobody says who scored it."""
    sequences = [
        SequenceAudit(
            index=ref.rollout.summary.index,
            example=ref.rollout.summary.example,
            version=ref.rollout.summary.policy_version,
            tokens=ref.rollout.summary.tokens,
            wrote=ref.rollout.wrote,
            scored=ref.scored,
            teacher=ref.rollout.summary.teacher,
        )
        for ref in refs
        if ref.scored
    ]
    if not sequences:
        return None
    return audit_step(step + 1, sequences, remade, max_staleness, has_teachers=has_teachers)
