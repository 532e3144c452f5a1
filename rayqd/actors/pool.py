"""Calls that survive their actor: asked again of another one, or of the same one once it is back."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from rayqd.actors.failures import unwrapped
from rayqd.errors import WorkerError
from rayqd.pipeline import LostError

MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.5
_REASON_WIDTH = 100

Notice = Callable[[str], Awaitable[None]]


async def _unheard(text: str) -> None:
    pass


class Pool:
    """The actors of one role. Work is a pure function of its arguments, so doing it twice does no harm."""

    def __init__(
        self, role: str, actors: Sequence[Any], patience_seconds: float = 120.0, notice: Notice = _unheard
    ) -> None:
        """`notice` hears of each death, and of the end of the outage."""
        self.role = role
        self.actors = list(actors)
        self.num_retries = 0
        self._notice = notice
        self._patience_seconds = patience_seconds  # how long nobody at all may be there
        self._in_flight: Counter[int] = Counter()
        self._away: dict[int, asyncio.Task[None]] = {}  # each ends when its actor is back
        self._starting: set[asyncio.Task[None]] = set()  # of those that are back, each until its actor can work

    @property
    def busy(self) -> list[str]:
        """The actors that are at work, and those that are to come back."""
        away = {index for index, task in self._away.items() if not task.done()}
        return [self._name(index) for index in range(len(self.actors)) if self._in_flight[index] or index in away]

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
                raise unwrapped(error, self._name(chosen)) from None
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
                raise unwrapped(error, self._name(chosen)) from None
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
            raise WorkerError(f"{self._name(chosen)} died {attempt} times at the same work: {reason}") from None
        self.num_retries += 1
        self._expect_back(chosen, error)

    def _expect_back(self, index: int, error: Exception) -> None:
        if index not in self._away:
            self._away[index] = asyncio.create_task(self._until_back(index, error))

    async def _until_back(self, index: int, error: Exception) -> None:
        """Asks again and again: a call that Ray itself repeats is told of on the user's screen every time."""
        died = time.monotonic()
        await self._notice(f"{self._name(index)} died ({_reason(error)}); it is started again, its work is done again")
        while not await self._is_there(index):
            await asyncio.sleep(_POLL_SECONDS)
        starting = asyncio.create_task(self._until_started(index, self.actors[index].start.remote(), died))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        del self._away[index]

    async def _is_there(self, index: int) -> bool:
        try:
            return await self.actors[index].__ray_ready__.remote()
        except ActorUnavailableError:
            return False
        except RayActorError as error:
            await self._notice(f"{self._name(index)} does not come back ({_reason(error)})")
            raise

    async def _until_started(self, index: int, started: Any, died: float) -> None:
        """Its process is there long before its engine or model. What fails here fails again at its next work."""
        with contextlib.suppress(RayError):
            await started
            await self._notice(f"{self._name(index)} is back after {time.monotonic() - died:.0f} s")

    def _name(self, index: int) -> str:
        return f"{self.role}-{index}"

    def _nobody_left(self) -> str:
        deaths = [error for task in self._away.values() if task.done() and (error := task.exception())]
        if len(deaths) == len(self.actors):
            return f"every {self.role} worker has died for good: {str(deaths[0]).splitlines()[0]}"
        return (
            f"every {self.role} worker is gone, and the cluster made no room for one within ray.placement_timeout_"
            f"seconds={self._patience_seconds:g}: start the same command again when there are nodes"
        )


def _reason(error: Exception) -> str:
    """The first line of Ray's, without the actor's number and what may have become of its task."""
    line = str(error).partition("\n")[0].partition(". The task may or may not")[0]
    return textwrap.shorten(line.rpartition("unavailable: ")[2], _REASON_WIDTH, placeholder=" ...")
