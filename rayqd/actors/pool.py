"""Calls that survive their actor: asked again of another one, or of the same one once it is back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from rayqd.actors.failures import unwrapped
from rayqd.errors import WorkerError
from rayqd.pipeline import LostError

MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.5


class Pool:
    """The actors of one role. Work is a pure function of its arguments, so doing it twice does no harm."""

    def __init__(self, role: str, actors: Sequence[Any], patience_seconds: float = 120.0) -> None:
        self.role = role
        self.actors = list(actors)
        self.num_retries = 0
        self._patience_seconds = patience_seconds  # how long nobody at all may be there
        self._in_flight: Counter[int] = Counter()
        self._away: dict[int, asyncio.Task[None]] = {}  # each ends when its actor is back

    async def call(self, method: str, *args: Any, num_returns: int) -> list[Any]:
        """References to what `method` returns, once the first of them is there.

        Raises what the method raised, LostError where an argument went down with its node, WorkerError where the work
        kills who does it or nobody comes back to do it.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            chosen = await self._least_busy()
            self._in_flight[chosen] += 1
            try:
                refs = getattr(self.actors[chosen], method).options(num_returns=num_returns).remote(*args)
                await refs[0]
                return refs
            except RayTaskError as error:
                if isinstance(error, ObjectLostError):  # Ray's error is an instance of its cause's class as well
                    raise LostError(f"an argument of {method}") from None
                raise unwrapped(error, f"{self.role}-{chosen}") from None
            except (RayActorError, ObjectLostError) as error:
                self._after_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1
        raise AssertionError("unreachable")

    async def stream(self, method: str, work: Mapping[int, Any]) -> AsyncIterator[tuple[int, Any]]:
        """(key, result) for each key of `work`, once, as `method` yields them in lists; raises what it raised.

        What a dead actor left undone is asked for again, of another one or of the same one restarted.
        """
        left = dict(work)
        attempt = 0
        while left:
            chosen = await self._least_busy()
            self._in_flight[chosen] += 1
            try:
                results = getattr(self.actors[chosen], method).options(num_returns="streaming").remote(left)
                async for ref in results:
                    for key, result in await ref:
                        attempt = 0
                        del left[key]
                        yield key, result
            except RayTaskError as error:
                raise unwrapped(error, f"{self.role}-{chosen}") from None
            except (RayActorError, ObjectLostError) as error:
                attempt += 1
                self._after_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1

    async def _least_busy(self) -> int:
        coming = [task for task in self._away.values() if not task.done()]
        if len(self._away) == len(self.actors) and coming:
            await asyncio.wait(coming, timeout=self._patience_seconds, return_when=asyncio.FIRST_COMPLETED)
        present = [index for index in range(len(self.actors)) if index not in self._away]
        if not present:
            raise WorkerError(self._nobody_left())
        return min(present, key=self._in_flight.__getitem__)

    def _after_death(self, chosen: int, attempt: int, error: Exception) -> None:
        """Do without it until it is back; WorkerError when that was the last attempt."""
        if attempt == MAX_ATTEMPTS:
            reason = str(error).splitlines()[0]
            raise WorkerError(f"{self.role}-{chosen} died {attempt} times at the same work: {reason}") from None
        self.num_retries += 1
        self._expect_back(chosen)

    def _expect_back(self, index: int) -> None:
        if index not in self._away:
            self._away[index] = asyncio.create_task(self._until_back(index))

    async def _until_back(self, index: int) -> None:
        """Asks again and again: a call that Ray itself repeats is told of on the user's screen every time."""
        while True:
            with contextlib.suppress(ActorUnavailableError):
                await self.actors[index].__ray_ready__.remote()
                del self._away[index]
                return
            await asyncio.sleep(_POLL_SECONDS)

    def _nobody_left(self) -> str:
        deaths = [error for task in self._away.values() if task.done() and (error := task.exception())]
        if len(deaths) == len(self.actors):
            return f"every {self.role} worker has died for good: {str(deaths[0]).splitlines()[0]}"
        return (
            f"every {self.role} worker is gone, and the cluster made no room for one within ray.placement_timeout_"
            f"seconds={self._patience_seconds:g}: start the same command again when there are nodes"
        )
