"""Calls that survive their actor: repeated at another one, or at the same one once it is back."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from rayqd.actors.failures import unwrap_error
from rayqd.errors import WorkerError
from rayqd.pipeline import LostError

MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.5
_REASON_WIDTH = 100

Notice = Callable[[str], Awaitable[None]]


async def _ignore_notice(text: str) -> None:
    pass


class Pool:
    """The actors of one role. Work is a pure function of its arguments, so doing it twice does no harm."""

    def __init__(
        self, role: str, actors: Sequence[Any], timeout_seconds: float = 120.0, notice: Notice = _ignore_notice
    ) -> None:
        """`notice` is told of each death, and of the end of the outage; for `timeout_seconds` all may be away."""
        self.role = role
        self.actors = list(actors)
        self.num_retries = 0
        self._notice = notice
        self._timeout_seconds = timeout_seconds
        self._in_flight: Counter[int] = Counter()
        self._restarting: dict[int, asyncio.Task[None]] = {}  # by index; each ends when its actor is back
        self._starting: set[asyncio.Task[None]] = set()  # of actors that are back; each ends when its actor can work

    @property
    def busy_workers(self) -> list[str]:
        """The names of the actors that are at work, and of those that are to come back."""
        restarting = {index for index, task in self._restarting.items() if not task.done()}
        return [self._name(index) for index in range(len(self.actors)) if self._in_flight[index] or index in restarting]

    async def call(self, method: str, *args: Any, num_returns: int) -> list[Any]:
        """Return references to what `method` returns, once the first of them is there.

        Raises what the method raised, LostError where an argument was lost with its node, WorkerError where the work
        kills every worker that does it or none comes back to do it.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            chosen = await self._choose_least_busy()
            self._in_flight[chosen] += 1
            try:
                refs = getattr(self.actors[chosen], method).options(num_returns=num_returns).remote(*args)
                await refs[0]
                return refs
            except RayTaskError as error:
                if isinstance(error, ObjectLostError):  # Ray's error is an instance of its cause's class as well
                    raise LostError(f"an argument of {method}") from None
                raise unwrap_error(error, self._name(chosen)) from None
            except (RayActorError, ObjectLostError) as error:
                self._handle_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1
        raise AssertionError("unreachable")

    async def stream(self, method: str, work: Mapping[int, Any]) -> AsyncIterator[tuple[int, Any]]:
        """Yield (key, result) for each key of `work`, once, as `method` yields them in lists; raises what it raised.

        What a dead actor left undone is repeated at another one, or at the same one restarted.
        """
        remaining = dict(work)
        attempt = 0
        while remaining:
            chosen = await self._choose_least_busy()
            self._in_flight[chosen] += 1
            try:
                results = getattr(self.actors[chosen], method).options(num_returns="streaming").remote(remaining)
                async for ref in results:
                    for key, result in await ref:
                        attempt = 0
                        del remaining[key]
                        yield key, result
            except RayTaskError as error:
                raise unwrap_error(error, self._name(chosen)) from None
            except (RayActorError, ObjectLostError) as error:
                attempt += 1
                self._handle_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1

    async def _choose_least_busy(self) -> int:
        restarting = [task for task in self._restarting.values() if not task.done()]
        if len(self._restarting) == len(self.actors) and restarting:
            await asyncio.wait(restarting, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        present = [index for index in range(len(self.actors)) if index not in self._restarting]
        if not present:
            raise WorkerError(self._explain_absence())
        return min(present, key=self._in_flight.__getitem__)

    def _handle_death(self, chosen: int, attempt: int, error: Exception) -> None:
        """Do without the actor until it is back; WorkerError when that was the last attempt."""
        if attempt == MAX_ATTEMPTS:
            reason = str(error).splitlines()[0]
            raise WorkerError(f"{self._name(chosen)} died {attempt} times at the same work: {reason}") from None
        self.num_retries += 1
        if chosen not in self._restarting:
            self._restarting[chosen] = asyncio.create_task(self._wait_for_restart(chosen, error))

    async def _wait_for_restart(self, index: int, error: Exception) -> None:
        """Poll until it is back: of a call that Ray itself repeats, the user's screen would tell every time."""
        died = time.monotonic()
        await self._notice(f"{self._name(index)} died ({_shorten(error)}); it is started again, its work is done again")
        while not await self._is_alive(index):
            await asyncio.sleep(_POLL_SECONDS)
        starting = asyncio.create_task(self._wait_for_start(index, self.actors[index].start.remote(), died))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        del self._restarting[index]

    async def _is_alive(self, index: int) -> bool:
        try:
            return await self.actors[index].__ray_ready__.remote()
        except ActorUnavailableError:
            return False
        except RayActorError as error:
            await self._notice(f"{self._name(index)} does not come back ({_shorten(error)})")
            raise

    async def _wait_for_start(self, index: int, started: Any, died: float) -> None:
        """Tell when it can work, long after its process is there. What fails here fails again at its next work."""
        with contextlib.suppress(RayError):
            await started
            await self._notice(f"{self._name(index)} is back after {time.monotonic() - died:.0f} s")

    def _name(self, index: int) -> str:
        return f"{self.role}-{index}"

    def _explain_absence(self) -> str:
        deaths = [error for task in self._restarting.values() if task.done() and (error := task.exception())]
        if len(deaths) == len(self.actors):
            return f"every {self.role} worker has died for good: {str(deaths[0]).splitlines()[0]}"
        return (
            f"every {self.role} worker is gone, and the cluster made no room for one within ray.placement_timeout_"
            f"seconds={self._timeout_seconds:g}: start the same command again when there are nodes"
        )


def _shorten(error: Exception) -> str:
    """Return the first line of Ray's message, without the actor's number and what may have become of its task."""
    line = str(error).partition("\n")[0].partition(". The task may or may not")[0]
    return textwrap.shorten(line.rpartition("unavailable: ")[2], _REASON_WIDTH, placeholder=" ...")
