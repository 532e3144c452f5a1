"""Batch generation over the cluster: rollout workers that hold a model as it lies on disk, and complete prompts.

              guided blocks                completions, as they are finished
    requests ───────────────► Pool.stream ─────────────────────────────────► on_completion, in the caller's process

A worker gets a long block, so that its engine's batch stays full; blocks shrink towards the end, so that no worker is
left with the last one.
"""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Protocol

import psutil
import ray
from ray import ObjectRef
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayqd.actors.connection import Cluster
from rayqd.actors.failures import unwrap_error
from rayqd.actors.pool import Pool
from rayqd.actors.ray_types import kill, wait
from rayqd.actors.remote import start_generation_workers
from rayqd.actors.workers import RolloutActor
from rayqd.cluster.placement import place_rollout_workers
from rayqd.config import Config
from rayqd.data.plan import generation_seed
from rayqd.errors import PlacementError
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.engine_makers import checkpoint_engine_maker
from rayqd.rollout.sampling import sampling_request
from rayqd.rollout.worker import MakeEngine
from rayqd.types import IntArray

_MAX_BATCHES_A_BLOCK = 32
_END_SECONDS = 60.0

OnCompletion = Callable[[int, IntArray], None]


class CompletionSource(Protocol):
    """Whatever completes prompts: `BatchGenerator`, or in a test an engine in this process."""

    def generate(
        self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, on_completion: OnCompletion
    ) -> None:
        """Complete all of `requests`; see `BatchGenerator.generate`."""
        ...


class BatchGenerator:
    """Rollout workers for the length of a `with`; at its end their processes and their memory are gone."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        *,
        model: str,
        revision: str | None = None,
        make_engine: MakeEngine | None = None,
    ) -> None:
        """Start `rollout.num_workers` workers with the model of that name; PlacementError where there is no room."""
        placement = place_rollout_workers(config, cluster.nodes)
        make_engine = make_engine or checkpoint_engine_maker(
            model, revision, config, placement.gpus_per_worker["rollout"] or 1.0
        )
        self._actors = start_generation_workers(config, placement, make_engine)
        self._pool = Pool(
            "generator",
            self._actors,
            config.ray.placement_timeout_seconds,
            stall_seconds=config.ray.stall_seconds,
        )
        self._batch_size = config.rollout.max_concurrent
        self._placement_seconds = config.ray.placement_timeout_seconds

    def __enter__(self) -> BatchGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process_ends: list[ObjectRef[None]] = []
        for actor in self._actors:
            if kind is None:  # otherwise it may be busy, and nobody waits for what it holds
                with contextlib.suppress(RayError):  # one that is just being restarted holds nothing yet
                    process_ends.append(_watch_for_end(*ray.get(actor.locate_process.remote(), timeout=_END_SECONDS)))
            kill(actor)
        with contextlib.suppress(RayError):  # a node that went away took its workers with it
            ray.get(process_ends)

    def wait_until_ready(self) -> float:
        """Return the seconds that the slowest engine took; PlacementError if the cluster makes no room in time."""
        processes = [actor.locate_process.remote() for actor in self._actors]
        _, unplaced = wait(processes, self._placement_seconds)
        if unplaced:
            raise PlacementError(
                f"the cluster made no room for {len(unplaced)} of {len(processes)} rollout workers within "
                f"ray.placement_timeout_seconds={self._placement_seconds:g}: add nodes, lower rollout.num_workers, "
                "wait until others are done, or raise it"
            )
        starting = {actor.load.remote(): rank for rank, actor in enumerate(self._actors)}
        seconds = 0.0
        for ref, rank in starting.items():
            try:
                seconds = max(seconds, ray.get(ref))
            except RayError as error:
                raise unwrap_error(error, f"generator-{rank}") from None
        return seconds

    def generate(
        self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, on_completion: OnCompletion
    ) -> None:
        """Complete all of `requests`, about `num_requests` pairs of key and request; the keys come back in any order.

        Takes from `requests` as workers become free, so it may be long. Raises what a worker or `on_completion` raised.
        """
        asyncio.run(self._generate(_Blocks(requests, num_requests, len(self._actors), self._batch_size), on_completion))

    async def _generate(self, blocks: _Blocks, on_completion: OnCompletion) -> None:
        async def feed_worker() -> None:
            while block := blocks.next():
                async for key, completion in self._pool.stream(RolloutActor.complete, block):
                    on_completion(key, completion)

        await asyncio.gather(*(feed_worker() for _ in self._actors))


def generation_request(
    config: Config, row: int, prompt_ids: IntArray, end_ids: tuple[int, ...], source: int = 0
) -> SamplingRequest:
    """Return the request for row `row` of the data: sampled as a rollout, and no longer than data may be."""
    room = config.data.max_length - len(prompt_ids)
    seed = generation_seed(config.seed, row, source)
    return sampling_request(config.rollout, prompt_ids, seed=seed, stop_token_ids=end_ids, most=room)


class _Blocks:
    """Requests in blocks for one worker each: half of what is left over all workers, but whole batches of an engine."""

    def __init__(
        self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, num_workers: int, batch_size: int
    ) -> None:
        self._requests = requests
        self._num_left = num_requests
        self._num_shares = 1 if num_workers == 1 else 2 * num_workers
        self._batch_size = batch_size

    def next(self) -> dict[int, SamplingRequest]:
        share = math.ceil(self._num_left / self._num_shares)
        size = min(max(share, self._batch_size), _MAX_BATCHES_A_BLOCK * self._batch_size)
        self._num_left = max(0, self._num_left - size)
        return dict(islice(self._requests, size))


def _watch_for_end(node: str, pid: int) -> ObjectRef[None]:
    """Return a reference that is ready once process `pid` of `node` has ended."""
    task = ray.remote(_wait_for_end)
    affinity = NodeAffinitySchedulingStrategy(node, soft=False)
    return task.options(num_cpus=0, scheduling_strategy=affinity).remote(pid)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and psutil.pid_exists(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        time.sleep(0.1)
