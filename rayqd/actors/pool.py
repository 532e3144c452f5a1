"""Calls that survive their actor: asked again of another one, or of the same one restarted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rayqd.actors.failures import unwrapped
from rayqd.errors import WorkerError

MAX_ATTEMPTS = 3
_BACKOFF_SECONDS = 1.0


class Pool:
    """The actors of one role. Work is a pure function of its arguments, so doing it twice does no harm."""

    def __init__(self, role: str, actors: Sequence[Any]) -> None:
        self.role = role
        self.actors = list(actors)
        self.num_retries = 0
        self._in_flight: Counter[int] = Counter()

    async def call(self, method: str, *args: Any, num_returns: int) -> list[Any]:
        """References to what `method` returns, once the first of them is there; raises what the method raised."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            chosen = self._least_busy()
            self._in_flight[chosen] += 1
            try:
                refs = getattr(self.actors[chosen], method).options(num_returns=num_returns).remote(*args)
                await refs[0]
                return refs
            except RayTaskError as error:
                raise unwrapped(error, f"{self.role}-{chosen}") from None
            except (RayActorError, ObjectLostError) as error:
                await self._after_death(chosen, attempt, error)
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
            chosen = self._least_busy()
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
                await self._after_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1

    def _least_busy(self) -> int:
        return min(range(len(self.actors)), key=self._in_flight.__getitem__)

    async def _after_death(self, chosen: int, attempt: int, error: Exception) -> None:
        """Wait for another life; WorkerError when that was the last attempt."""
        if attempt == MAX_ATTEMPTS:
            reason = str(error).splitlines()[0]
            raise WorkerError(f"{self.role}-{chosen} died {attempt} times at the same work: {reason}") from None
        self.num_retries += 1
        await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)
