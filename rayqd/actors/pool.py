"""Calls that survive their actor: repeated at another one, or at the same one once it is back."""

from __future__ import annotations

import asyncio
import math
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from rayqd.actors.failures import unwrap_error
from rayqd.actors.pulse import Silence, end_silent, read_sign
from rayqd.actors.workers import PooledActor
from rayqd.audit import Call
from rayqd.errors import WorkerError
from rayqd.pipeline import LostError

MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.5
_LOOK_SECONDS = 1.0  # between two looks for a sign of life
_REASON_WIDTH = 100

_STALL_MEND = {
    "rollout": "another version of vLLM may help, or a higher ray.stall_seconds where a token may take that long"
}

A = TypeVar("A", bound=PooledActor)
P = ParamSpec("P")
Report = TypeVar("Report")
Value = TypeVar("Value")
Request = TypeVar("Request")


class Notice(Protocol):
    """Tells the user of `text`; `died` is the worker whose death that is."""

    def __call__(self, text: str, died: str = "") -> Awaitable[None]:
        """Tell it."""
        ...


async def _ignore_notice(text: str, died: str = "") -> None:
    pass


class Pool(Generic[A]):
    """The actors of one role. Work is a pure function of its arguments, so doing it twice does no harm."""

    def __init__(
        self,
        role: str,
        actors: Sequence[ActorProxy[A]],
        timeout_seconds: float = 120.0,
        notice: Notice = _ignore_notice,
        stall_seconds: float = math.inf,
        first_rank: int = 0,
    ) -> None:
        """`notice` is told of each death, and of the end of the outage; for `timeout_seconds` all may be away.

        An actor at work that gives no sign of life for `stall_seconds` is ended; see `rayqd.actors.pulse`. `first_rank`
        is the first actor's, where another pool has the role's first ones.
        """
        self.role = role
        self.actors = list(actors)
        self._first_rank = first_rank
        self.num_retries = 0
        self._fatal = ""  # why the run must end
        self._stalls: Counter[int] = Counter()
        self._stall_seconds = stall_seconds
        self._silences: defaultdict[int, Silence] = defaultdict(Silence)
        self._num_silent: Counter[int] = Counter()  # ends for silence in a row, with no work done between
        self._notice = notice
        self._timeout_seconds = timeout_seconds
        self._in_flight: Counter[int] = Counter()
        self._restarting: dict[int, asyncio.Task[None]] = {}  # by index; each ends when its actor is back
        self._starting: set[asyncio.Task[None]] = set()  # of actors that are back; each ends when its actor can work
        self._loading: set[int] = set()  # those actors

    @property
    def busy_workers(self) -> list[str]:
        """The names of the actors that are at work, and of those that are to come back."""
        restarting = {index for index, task in self._restarting.items() if not task.done()}
        return [self._name(index) for index in range(len(self.actors)) if self._in_flight[index] or index in restarting]

    async def call(
        self,
        method: Callable[Concatenate[A, P], tuple[Report, *tuple[Value, ...]]],
        num_values: int,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> tuple[Report, list[ObjectRef[Value]], Call]:
        """Call `method` of one actor; return its report, references to the `num_values` values behind it, and who.

        Raises what the method raised, LostError where an argument was lost with its node, WorkerError where the work
        kills every worker that does it or none comes back to do it.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            chosen = await self._choose_least_busy()
            self._in_flight[chosen] += 1
            try:
                remote_method = getattr(self.actors[chosen], method.__name__).options(num_returns=1 + num_values)
                report, *values = remote_method.remote(*args, **kwargs)
                done = await self._outcome(chosen, report)
                self._num_silent[chosen] = 0
                return done, values, Call(worker=self._name(chosen), attempt=attempt)
            except RayTaskError as error:
                if isinstance(error, ObjectLostError):  # Ray's error is an instance of its cause's class as well
                    raise LostError(f"an argument of {method.__name__}") from None
                raise unwrap_error(error, self._name(chosen)) from None
            except (RayActorError, ObjectLostError) as error:
                self._handle_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1
        raise AssertionError("unreachable")

    async def stream(
        self,
        method: Callable[[A, Mapping[int, Request]], Iterator[list[tuple[int, Value]]]],
        work: Mapping[int, Request],
    ) -> AsyncIterator[tuple[int, Value]]:
        """Yield (key, value) for each key of `work`, once, as `method` yields them in lists; raises what it raised.

        What a dead actor left undone is repeated at another one, or at the same one restarted.
        """
        remaining = dict(work)
        attempt = 0
        while remaining:
            chosen = await self._choose_least_busy()
            self._in_flight[chosen] += 1
            try:
                remote_method = getattr(self.actors[chosen], method.__name__).options(num_returns="streaming")
                parts = cast("AsyncIterator[ObjectRef[list[tuple[int, Value]]]]", remote_method.remote(remaining))
                while (ref := await self._outcome(chosen, anext(parts, None))) is not None:
                    for key, value in await ref:
                        attempt = self._num_silent[chosen] = 0
                        del remaining[key]
                        yield key, value
            except RayTaskError as error:
                raise unwrap_error(error, self._name(chosen)) from None
            except (RayActorError, ObjectLostError) as error:
                attempt += 1
                self._handle_death(chosen, attempt, error)
            finally:
                self._in_flight[chosen] -= 1

    async def _outcome(self, index: int, work: Awaitable[Value]) -> Value:
        """Return what `work` of an actor comes to; one that falls silent over it is ended, and its work raises that."""
        if math.isinf(self._stall_seconds):
            return await work
        waiting = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({waiting}, timeout=_LOOK_SECONDS))[0]:
                await self._end_if_silent(index)
        finally:
            waiting.cancel()  # of no effect once it is done
        return waiting.result()

    async def _end_if_silent(self, index: int) -> None:
        actor_id = cast(Any, self.actors[index])._actor_id.hex()
        sign = await asyncio.to_thread(read_sign, actor_id)
        silence = self._silences[index]
        if silence.look(sign) < self._stall_seconds or sign is None or index in self._restarting:
            return
        silence.disregard()  # before anything is waited for: other work of its looks as well
        name = self._name(index)
        state = await asyncio.to_thread(end_silent, sign, name)
        text = f"{name} gave no sign of life for ray.stall_seconds={self._stall_seconds:g}: {state}; it is ended"
        await self._notice(text)
        self._num_silent[index] += 1
        if self._num_silent[index] > 1:
            self._fatal = f"{text}, as it was before, with no work done between: the same command goes on"

    async def _choose_least_busy(self) -> int:
        restarting = [task for task in self._restarting.values() if not task.done()]
        if len(self._restarting) == len(self.actors) and restarting:
            await asyncio.wait(restarting, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._fatal:
            raise WorkerError(self._fatal)
        present = [index for index in range(len(self.actors)) if index not in self._restarting]
        if not present:
            raise WorkerError(self._explain_absence())
        loaded = [index for index in present if index not in self._loading]  # even a busy one is sooner done
        return min(loaded or present, key=self._in_flight.__getitem__)

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
        name = self._name(index)
        await self._notice(f"{name} died ({_shorten(error)}); it is started again, its work is done again", died=name)
        while not await self._is_alive(index):
            await asyncio.sleep(_POLL_SECONDS)
        await self._tell_of_stall(index)
        self._loading.add(index)
        starting = asyncio.create_task(self._wait_for_start(index, self.actors[index].load.remote(), died))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        del self._restarting[index]

    async def _tell_of_stall(self, index: int) -> None:
        """Tell where it stood, if it ended itself because its work stood still; a second time ends the run."""
        try:
            stall = await self.actors[index].explain_exit.remote()
        except RayError:  # it is gone again, and the next call will find out
            return
        if not stall:
            return
        self._stalls[index] += 1
        await self._notice(f"{self._name(index)} {stall}")
        if self._stalls[index] > 1:
            self._fatal = (
                f"{self._name(index)} {stall}, and did so before it was started again: the stacks are in Ray's logs; "
                f"{_STALL_MEND.get(self.role, 'raise ray.stall_seconds where a batch may take that long')}"
            )

    async def _is_alive(self, index: int) -> bool:
        try:
            return await self.actors[index].is_alive.remote()
        except ActorUnavailableError:
            return False
        except RayActorError as error:
            await self._notice(f"{self._name(index)} does not come back ({_shorten(error)})")
            raise

    async def _wait_for_start(self, index: int, loaded: ObjectRef[float], died: float) -> None:
        """Tell when it can work, long after its process is there. What fails here fails again at its next work."""
        try:
            await self._outcome(index, loaded)
        except RayError:
            return
        finally:
            self._loading.discard(index)
        await self._notice(f"{self._name(index)} is back after {time.monotonic() - died:.0f} s")

    def _name(self, index: int) -> str:
        return f"{self.role}-{self._first_rank + index}"

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
