"""Rollout workers before there is a student: they hold a model as it lies on disk, and answer prompts with it.

              guided blocks                completions, as they are finished
    requests ───────────────► Pool.stream ─────────────────────────────────► on_completion, in the caller's process

A worker gets a long block, so that its engine's batch stays full; blocks shrink towards the end, so that no worker is
left with the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Protocol

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayqd.actors.connection import Cluster
from rayqd.actors.failures import unwrapped
from rayqd.actors.pool import Pool
from rayqd.actors.remote import start_writers
from rayqd.cluster.placement import place_rollout_workers
from rayqd.config import Config
from rayqd.data.plan import writing_seed
from rayqd.errors import PlacementError
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.worker import MakeEngine, checkpoint_engine_maker
from rayqd.types import IntArray

_MAX_BATCHES_A_BLOCK = 32
_END_SECONDS = 60.0

OnCompletion = Callable[[int, IntArray], None]


class Answers(Protocol):
    """Whatever completes prompts: `Writers`, or in a test an engine in this process."""

    def write(
        self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, on_completion: OnCompletion
    ) -> None: ...


class Writers:
    """To be used in a `with`; at its end every process of theirs is gone, and with it the memory that it held."""

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        *,
        model: str,
        revision: str | None = None,
        make_engine: MakeEngine | None = None,
    ) -> None:
        """Starts `rollout.num_workers` of them with the model of that name; PlacementError where there is no room."""
        placement = place_rollout_workers(config, cluster.nodes)
        make_engine = make_engine or checkpoint_engine_maker(
            model, revision, config, placement.gpus_per_worker["rollout"] or 1.0
        )
        self._actors = start_writers(config, placement, make_engine)
        self._pool = Pool("writer", self._actors, config.ray.placement_timeout_seconds)
        self._batch_size = config.rollout.max_concurrent
        self._placement_seconds = config.ray.placement_timeout_seconds

    def __enter__(self) -> Writers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gone: list[Any] = []
        for actor in self._actors:
            if kind is None:  # otherwise it may be busy, and nobody waits for what it holds
                with contextlib.suppress(RayError):  # one that is just being restarted holds nothing yet
                    gone.append(_is_gone(*ray.get(actor.process.remote(), timeout=_END_SECONDS)))
            ray.kill(actor)
        with contextlib.suppress(RayError):  # a node that went away took its workers with it
            ray.get(gone)

    def wait_until_ready(self) -> float:
        """Seconds that the slowest one's engine took; PlacementError when the cluster makes no room in time."""
        processes = [actor.process.remote() for actor in self._actors]
        _, unplaced = ray.wait(processes, num_returns=len(processes), timeout=self._placement_seconds)
        if unplaced:
            raise PlacementError(
                f"the cluster made no room for {len(unplaced)} of {len(processes)} rollout workers within "
                f"ray.placement_timeout_seconds={self._placement_seconds:g}: add nodes, lower rollout.num_workers, "
                "wait until others are done, or raise it"
            )
        starting = {actor.start.remote(): rank for rank, actor in enumerate(self._actors)}
        seconds = 0.0
        for ref, rank in starting.items():
            try:
                seconds = max(seconds, float(ray.get(ref)))
            except RayError as error:
                raise unwrapped(error, f"writer-{rank}") from None
        return seconds

    def write(
        self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, on_completion: OnCompletion
    ) -> None:
        """Answer all of `requests`, about `num_requests` pairs of a key and a request; the keys come back in any order.

        Takes from `requests` as workers become free, so it may be long. Raises what a worker or `on_completion` raised.
        """
        asyncio.run(self._write(_Blocks(requests, num_requests, len(self._actors), self._batch_size), on_completion))

    async def _write(self, blocks: _Blocks, on_completion: OnCompletion) -> None:
        async def one_worker() -> None:
            while block := blocks.next():
                async for key, completion in self._pool.stream("answer", block):
                    on_completion(key, completion)

        await asyncio.gather(*(one_worker() for _ in self._actors))


def writing_request(config: Config, row: int, prompt_ids: IntArray, end_ids: tuple[int, ...]) -> SamplingRequest:
    """What a model is asked to write for row `row` of the data: as a rollout, and no longer than data may be."""
    rollout = config.rollout
    longest = min(rollout.max_new_tokens, config.data.max_length - len(prompt_ids))
    return SamplingRequest(
        prompt_ids=prompt_ids,
        seed=writing_seed(config.seed, row),
        temperature=rollout.temperature,
        min_new_tokens=min(rollout.min_new_tokens, longest),
        max_new_tokens=longest,
        stop_token_ids=end_ids,
    )


class _Blocks:
    """Work cut as it is asked for: half of what is left over all workers, but whole batches of an engine."""

    def __init__(
        self, requests: Iterator[tuple[int, SamplingRequest]], num_requests: int, num_workers: int, batch_size: int
    ) -> None:
        self._requests = requests
        self._left = num_requests
        self._shares = 1 if num_workers == 1 else 2 * num_workers
        self._batch_size = batch_size

    def next(self) -> dict[int, SamplingRequest]:
        share = math.ceil(self._left / self._shares)
        size = min(max(share, self._batch_size), _MAX_BATCHES_A_BLOCK * self._batch_size)
        self._left = max(0, self._left - size)
        return dict(islice(self._requests, size))


def _is_gone(node: str, pid: int) -> Any:
    """A reference that is there when process `pid` of `node` is not."""
    task: Any = ray.remote(_wait_for_end)
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    return task.options(num_cpus=0, scheduling_strategy=where).remote(pid)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and psutil.pid_exists(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        time.sleep(0.1)
